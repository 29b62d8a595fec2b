"""Read scores that were computed elsewhere into the tidy table, and refuse what would make their ranking wrong."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from quintet.errors import InputError, InputProblemsError
from quintet.ranking.elsewhere import csv_files, nnunet
from quintet.results import COLUMNS
from quintet.tables import folded

RANGES = {"dice": (0.0, 1.0), "iou": (0.0, 1.0)}
# a word of the metric's name begins so
ERRORS = re.compile(
    r"(?<![a-z])((log)?loss|hd|hausdorff|assd?|asd|msd|dist|err|mae|m?rmse|mse|brier|nll|ece|f[np](?![a-z]))", re.IGNORECASE
)
EXAMPLES = 3  # names in a message


def read_results(
    sources: Sequence[str],
    metric: str,
    *,
    subject: str,
    bounds: tuple[float, float] | None = None,
    undefined: float | None = None,
) -> pd.DataFrame:
    """The tidy table of `metric`, from CSV files and folders or summaries of nnU-Net; "NAME=PATH" names the configuration.

    See csv_files.py and nnunet.py for the formats; the pattern `subject` finds the patient in the name of nnU-Net's cases.
    `undefined` replaces scores that are not finite. Raises InputError or InputProblemsError, one sentence per problem.
    """
    if undefined is not None and not math.isfinite(undefined):
        raise InputError(f"--undefined {undefined}: expected a finite number")
    pattern = nnunet.subject_pattern(subject)
    tables = []
    for source in sources:
        name, path = _name_and_path(source)
        files = nnunet.find_summaries(path) if path.is_dir() else [path]
        for file in files:
            is_summary = path.is_dir() or path.suffix == ".json"
            table = nnunet.read(file, metric, pattern, undefined) if is_summary else csv_files.read(file, metric)
            tables.append(table.assign(config=name) if name else table)
    table = pd.concat(tables, ignore_index=True)
    if undefined is not None:
        table.loc[~table["value"].map(math.isfinite), "value"] = undefined
    if problems := _problems(table, bounds or RANGES.get(metric.lower()), metric):
        raise InputProblemsError(", ".join(sources), problems)
    return table.assign(metric=metric)[COLUMNS]


def _name_and_path(source: str) -> tuple[str, Path]:
    name, equals, location = source.partition("=")
    if Path(source).exists() or not equals:
        name, location = "", source
    elif not (name := " ".join(name.split())):
        raise InputError(f"{source}: no name before the equals sign")
    if not location or not Path(location).exists():
        raise InputError(f"{location or source} does not exist")
    return name, Path(location)


def _problems(table: pd.DataFrame, bounds: tuple[float, float] | None, metric: str) -> list[str]:
    """One sentence per problem."""
    problems = []
    twice = table[table.duplicated(["config", "fold", "seed", "case"])]
    if len(twice):
        row = twice.iloc[0]
        problems.append(
            f"{row['config']}, fold {row['fold']}, seed {row['seed']}: {len(twice)} score(s) are given twice, the first of case "
            f"{row['case']}; name different configurations (NAME=PATH), number repeated runs (column seed, or a folder seed_K)"
        )
    if table["study"].nunique() > 1:
        problems.append(f"several studies: {_some(sorted(set(table['study'])))}; rank one at a time")
    if "labels" in table and table["labels"].nunique() > 1:
        first, other = table.iloc[0], table[table["labels"] != table["labels"].iloc[0]].iloc[0]
        problems.append(
            f"scores are means over different labels: {first['labels']} in {first['config']}, case {first['case']}, but "
            f"{other['labels']} in {other['config']}, case {other['case']}; evaluate the same labels everywhere"
        )
    finite = table["value"].map(math.isfinite)
    if not finite.all():
        row = table[~finite].iloc[0]
        problems.append(
            f"{row['config']}: {(~finite).sum()} score(s) are missing or not finite, the first of case {row['case']}; "
            "--undefined sets the value of such scores (nnU-Net: a label that is in neither mask)"
        )
    problems += _range_problems(table[finite], bounds, metric)
    people = table.drop_duplicates(["case", "group"]).groupby("case")["group"].agg(list)
    if len(several := people[people.map(len) > 1]):
        problems.append(
            f"case {several.index[0]} belongs to several patients: {_some(several.iloc[0])}; if these are different cases, put "
            "the patient into the case's name"
        )
    alike = table.groupby(table["group"].map(folded))["group"].agg(lambda names: sorted(set(names)))
    if len(several := alike[alike.map(len) > 1]):
        problems.append(
            f"patients {' and '.join(map(repr, several.iloc[0][:2]))} look like one person; write each patient in one way only"
        )
    folds = table.groupby("group")["fold"].agg(lambda fold: sorted(set(fold)))
    if len(several := folds[folds.map(len) > 1]):
        problems.append(
            f"{len(several)} patient(s) are in several folds, the first is {several.index[0]} (folds {_some(several.iloc[0])}): "
            "cases of a patient were split between folds, or the folds differ between configurations or seeds; use the same "
            "split by patient everywhere, or correct --subject"
        )
    return problems or _missing_cases(table)


def _range_problems(table: pd.DataFrame, bounds: tuple[float, float] | None, metric: str) -> list[str]:
    by_config = table.groupby("config")["value"]
    fractions, percents = by_config.max() <= 1, by_config.median() > 10
    mixed = bool(fractions.any() and percents.any() and (table["value"] >= 0).all() and not ERRORS.search(metric))
    if mixed and (not bounds or bounds[1] > 1):
        fraction, percent = fractions.idxmax(), percents.idxmax()
        return [f"{fraction} has fractions, but {percent} seems to have percent; write both alike"]
    if bounds:
        outside = table[(table["value"] < bounds[0]) | (table["value"] > bounds[1])]
        if outside.empty:
            return []
        row = outside.iloc[0]
        return [
            f"{row['config']}: {len(outside)} score(s) are outside {bounds[0]:g} to {bounds[1]:g}, the first of case "
            f"{row['case']} ({row['value']:g}); correct them, or set --range"
        ]
    return []


def _missing_cases(table: pd.DataFrame) -> list[str]:
    cases = {str(c): set(rows["case"]) for c, rows in table.groupby("config")}
    every = set.union(*cases.values())
    if not set.intersection(*cases.values()):
        named = "; ".join(f"{config}: {_some(sorted(own))}" for config, own in cases.items())
        return [f"no case is in all configurations ({named}); use the same case names everywhere"]
    problems = []
    for (config, seed), rows in table.groupby(["config", "seed"]):
        if missing := sorted(every - set(rows["case"])):
            problems.append(
                f"{config}, seed {seed}: {len(missing)} of {len(every)} cases are missing ({_some(missing)}); add their scores, "
                "or leave these cases out everywhere"
            )
    return problems


def _some(names: Sequence[Any]) -> str:
    return ", ".join(map(str, names[:EXAMPLES])) + (", ..." if len(names) > EXAMPLES else "")
