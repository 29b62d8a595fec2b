"""Rank scores that were not computed here, and read such a ranking again."""

import json
from pathlib import Path
from typing import Annotated, Any, Self

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from quintet import results
from quintet.errors import InputError
from quintet.files import atomic_folder, md5, write_json
from quintet.ranking.questions import is_better
from quintet.ranking.report import write
from quintet.ranking.table import Ranking, rank

CASES, SETTINGS = "cases.csv", "settings.json"
Name = Annotated[str, Field(min_length=1)]


class Settings(BaseModel):
    """How a table is ranked: arguments of `rank`, and the configuration `against` which all others are compared, as planned."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    metric: Name
    lower_is_better: bool = False
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    bounds: tuple[FiniteFloat, FiniteFloat] | None = None
    deterministic: list[str] = []
    same_run_as: dict[str, str] = {}
    against: Name | None = None

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.bounds and self.bounds[0] >= self.bounds[1]:
            raise ValueError(f"the range {self.bounds[0]:g} to {self.bounds[1]:g} is empty")
        for name in self.same_run_as:
            seen = [name]
            while (parent := self.same_run_as.get(seen[-1])) is not None:
                if parent in seen:
                    raise ValueError(f"same_run_as goes in a circle: {' = '.join([*seen, parent])}")
                seen.append(parent)
        return self

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Raises InputError for a value that is not allowed."""
        try:
            return cls.model_validate_json(json.dumps(values))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InputError(f"{f'{where}: ' if where else ''}{first['msg'].removeprefix('Value error, ')}") from None


def rank_elsewhere(table: pd.DataFrame, settings: Settings) -> Ranking:
    """Raises InputError if a setting names a configuration that the table lacks."""
    options = settings.model_dump()
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
        write_json(folder / SETTINGS, {"cases": md5(folder / CASES), "settings": settings.model_dump()})
    return ranking


def load_ranking(folder: Path) -> Ranking:
    """Rank again what `write_ranking` wrote. Raises InputError if the folder is none of its, or its files were changed."""
    if not (folder / SETTINGS).is_file():
        raise InputError(f"{folder}: neither a study nor a folder that `quintet rank` wrote")
    try:
        values = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        cases, settings = values["cases"], Settings.of(values["settings"])
    except (OSError, ValueError, TypeError, KeyError, InputError) as error:
        raise InputError(f"{folder / SETTINGS} is damaged ({error}); run `quintet rank` again") from None
    if not (folder / CASES).is_file() or md5(folder / CASES) != cases:
        raise InputError(f"{folder / CASES} was changed or deleted; run `quintet rank` again")
    return rank_elsewhere(results.read([folder / CASES]), settings)
