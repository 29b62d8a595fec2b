"""`quintet promote`: register a trained run in MLflow under a name, if its study's verdict supports the choice."""

from pathlib import Path
from typing import Any

from quintet.comparison import Runs
from quintet.errors import InputError
from quintet.ranking import Ranking, letters
from quintet.runs import Record

ALIAS = "champion"  # `models:/NAME@champion`


def configuration_of(record: Record, ranked: Runs) -> str:
    """The ranked configuration that a run is of: one of its runs has the same values and data, and inputs of the same names (a
    run that it starts from, weights). Empty if there is none."""
    for name, folders in ranked.items():
        others = [Record.load(folder) for folder in folders if (folder / "record.json").is_file()]
        for other in others:
            same_data = other.inputs["data"] == record.inputs.get("data")
            if same_data and other.params == record.params and other.inputs.keys() == record.inputs.keys():
                return name
    return ""


def doubt(config: str, ranking: Ranking) -> str:
    """Why the verdict does not support a configuration: it is not ranked, another one is significantly better, or it is not
    significantly better than the trivial method. Empty if it supports it."""
    table = ranking.table.set_index("config")
    if config not in table.index:
        return "its configuration is not in the ranking (no ranked run has the same values and data)"
    best, group = table.index[0], letters(table.loc[config, "group"])
    if not group & letters(table.loc[best, "group"]):
        means = f"{table.loc[best, 'mean']:.4g} against {table.loc[config, 'mean']:.4g}"
        return f"{best} is significantly better ({ranking.label} {means})"
    asked = ranking.answers[ranking.answers["question"] == f"Is {config} better than {ranking.floor}?"]
    planned = bool((asked["significant"] & (asked["gain"] > 0)).any())  # corrected for fewer comparisons than the pairs
    if ranking.floor and not planned and group & letters(table.loc[ranking.floor, "group"]):
        return f"it is not significantly better than {ranking.floor}, a trivial method"
    return ""


def promote(
    run: str, folder: Path, ranked: Runs, ranking: Ranking, *, name: str, anyway: bool, known: str | None = None
) -> tuple[str, str]:
    """Register a run's model as a new version of `name`, with the alias `champion`; returns the version, and what the verdict
    says against the choice. `run`: as the user named it; `ranked`: the sweep's run folders;
    `known`: the MLflow run that `folder` was downloaded from.

    Raises InputError if the verdict does not support the choice (unless `anyway`), or MLflow lacks the run and cannot take it.
    """
    from mlflow.exceptions import MlflowException

    from quintet.serving.model import write_model
    from quintet.tracking import run_id_of
    from quintet.tracking.store import create_client, tracking_uri

    if not name.strip() or {"/", ":"} & set(name):
        raise InputError(f"--name {name!r}: the name of a model in MLflow must not be empty or contain / or :; choose another")
    record = Record.load(folder)
    against = doubt(configuration_of(record, ranked), ranking)
    if against and not anyway:
        raise InputError(f"{run}: the verdict does not support this choice: {against}. --anyway registers it nonetheless")
    run_id = run_id_of(folder, write_model, known=known)
    client: Any = create_client(tracking_uri())
    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.create_registered_model(name, description=f"Quintet, {record.study}")
    description = f"{ranking.verdict}\n\nAgainst this choice: {against}." if against else ranking.verdict
    known_versions = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    if known_versions:
        version = client.update_model_version(name, known_versions[0].version, description)
    else:
        version = client.create_model_version(name, f"runs:/{run_id}/model", run_id, description=description)
    client.set_registered_model_alias(name, ALIAS, version.version)
    return str(version.version), against
