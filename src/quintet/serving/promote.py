"""`quintet promote`: register a trained run in MLflow under a name, if its study's verdict supports the choice."""

from pathlib import Path
from typing import Any

from quintet.errors import InputError
from quintet.params import Params
from quintet.ranking import Ranking
from quintet.runs import Record

ALIAS = "champion"  # `models:/NAME@champion`


def configuration_of(record: Record, params: Params) -> str:
    """The configuration of the sweep that a run is of; the selected run has the values of one. Empty if there is none."""
    configs = params.of(record.study).configs
    if record.config in configs:
        return record.config
    found = [
        name
        for name, config in configs.items()
        if all(record.params.get(key) == value for key, value in config.configuration_values().items())
    ]
    return found[0] if found else ""


def doubt(config: str, ranking: Ranking) -> str:
    """Why the verdict does not support a configuration: it is not ranked, another one is significantly better, or it is not
    significantly better than the trivial method. Empty if it supports it."""
    table = ranking.table.set_index("config")
    if config not in table.index:
        return "it is of no configuration that is ranked"
    best, group = table.index[0], set(table.loc[config, "group"])
    if not group & set(table.loc[best, "group"]):
        means = f"{table.loc[best, 'mean']:.4g} against {table.loc[config, 'mean']:.4g}"
        return f"{best} is significantly better ({ranking.label} {means})"
    asked = ranking.answers[ranking.answers["question"] == f"Is {config} better than {ranking.floor}?"]
    planned = bool((asked["significant"] & (asked["gain"] > 0)).any())  # corrected for fewer comparisons than the pairs
    if ranking.floor and not planned and group & set(table.loc[ranking.floor, "group"]):
        return f"it is not significantly better than {ranking.floor}, a trivial method"
    return ""


def promote(run: str, folder: Path, params: Params, ranking: Ranking, *, name: str, anyway: bool) -> tuple[str, str]:
    """Register a run's model as a new version of `name`, with the alias `champion`; returns the version, and what the verdict
    says against the choice. `run`: as the user named it.

    Raises InputError if the verdict does not support the choice (unless `anyway`), or MLflow lacks the run and cannot take it.
    """
    from mlflow.exceptions import MlflowException

    from quintet.serving.model import write_model
    from quintet.tracking import run_id_of
    from quintet.tracking.store import create_client, tracking_uri

    record = Record.load(folder)
    against = doubt(configuration_of(record, params), ranking)
    if against and not anyway:
        raise InputError(f"{run}: the verdict does not support this choice: {against}. --anyway registers it all the same")
    run_id = run_id_of(folder, write_model)
    client: Any = create_client(tracking_uri())
    try:
        client.get_registered_model(name)
    except MlflowException:
        client.create_registered_model(name, description=f"Quintet, {record.study}")
    description = f"{ranking.verdict}\n\nAgainst this choice: {against}." if against else ranking.verdict
    version = client.create_model_version(name, f"runs:/{run_id}/model", run_id, description=description)
    client.set_registered_model_alias(name, ALIAS, version.version)
    return str(version.version), against
