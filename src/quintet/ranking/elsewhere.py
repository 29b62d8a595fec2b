"""Rank a table of scores that were not computed here, and read such a ranking again."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd

from quintet import results
from quintet.errors import InputError
from quintet.files import atomic_folder, write_json
from quintet.ranking.questions import is_better
from quintet.ranking.report import write
from quintet.ranking.table import Ranking, rank

CASES, SETTINGS = "cases.csv", "settings.json"


@dataclass(frozen=True)
class Settings:
    """How a table is ranked: arguments of `rank`, and the configuration `against` which all others are compared, as planned."""

    metric: str
    lower_is_better: bool = False
    alpha: float = 0.05
    bounds: tuple[float, float] | None = None
    deterministic: list[str] = field(default_factory=list)
    same_run_as: dict[str, str] = field(default_factory=dict)
    against: str | None = None


def rank_elsewhere(table: pd.DataFrame, settings: Settings) -> Ranking:
    """Raises InputError if a setting names a configuration that the table lacks."""
    options = asdict(settings)
    against, configs = options.pop("against"), sorted(set(table["config"]))
    named = {*settings.deterministic, *settings.same_run_as, *settings.same_run_as.values(), *([against] if against else [])}
    if unknown := sorted(named - set(configs)):
        raise InputError(f"unknown configuration {', '.join(unknown)}; available: {', '.join(configs)}")
    questions = [is_better(config, against) for config in configs if against and config != against]
    return rank(table, questions=questions, **options)


def write_ranking(table: pd.DataFrame, settings: Settings, output: Path, *, title: str) -> Ranking:
    """Rank, and write the report and what `load_ranking` reads into the folder `output`."""
    ranking = rank_elsewhere(table, settings)
    with atomic_folder(output) as folder:
        write(ranking, folder, title=title, unit="")
        results.write(table, folder / CASES)
        write_json(folder / SETTINGS, asdict(settings))
    return ranking


def load_ranking(folder: Path) -> Ranking:
    """Rank again what `write_ranking` wrote. Raises InputError if the folder is none of its."""
    try:
        values = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        settings = Settings(**values)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{folder}: neither a study nor a folder that `quintet rank` wrote ({error})") from None
    return rank_elsewhere(results.read([folder / CASES]), settings)
