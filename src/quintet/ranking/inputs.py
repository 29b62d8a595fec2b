"""Read scores that were not computed here into the tidy table: CSV files, and the summaries of nnU-Net's validation."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from quintet.errors import InputError, InputProblemsError
from quintet.results import COLUMNS

SUMMARIES = ("summary.json", "validation_summary.json")
RANGES = {"dice": (0.0, 1.0), "iou": (0.0, 1.0)}
STUDY = "elsewhere"
EXAMPLES = 3  # names in a message
DERIVED = re.compile("crossval|cv_niftis|postprocessed")  # repeat the folds' cases
NOT_A_NAME = re.compile(r"fold_\w+|seed_?\d+|validation\w*|evaluation")


def read_results(
    sources: Sequence[str],
    metric: str,
    *,
    subject: str,
    bounds: tuple[float, float] | None = None,
    undefined: float | None = None,
) -> pd.DataFrame:
    """The tidy table of `metric`, from CSV files and folders or summaries of nnU-Net; "NAME=PATH" names the configuration.

    A CSV file has the columns case, patient and score (or those of the tidy table), and optionally config (default: the file's
    name), fold and seed (0). nnU-Net's score of a case is the mean over its labels; the pattern `subject` finds the person in a
    case's name, and folder names give configuration (above fold_K), fold and seed (seed_K or seedK). `undefined` replaces scores
    that are not a number. Raises InputError or InputProblemsError, one sentence per problem.
    """
    tables = [table for source in sources for table in _read(source, metric, _pattern(subject), undefined)]
    table = pd.concat(tables, ignore_index=True)
    if undefined is not None:
        table["value"] = table["value"].fillna(undefined)
    if problems := _problems(table, bounds or RANGES.get(metric.lower())):
        raise InputProblemsError(", ".join(sources), problems)
    return table


def _read(source: str, metric: str, subject: re.Pattern[str], undefined: float | None) -> Iterator[pd.DataFrame]:
    name, equals, location = source.partition("=")
    if Path(source).exists() or not equals:
        name, location = "", source
    path = Path(location)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*.json") if p.name in SUMMARIES and not DERIVED.search(str(p.relative_to(path))))
        if not files:
            raise InputError(f"{path}: no {' or '.join(SUMMARIES)} below this folder; nnUNetv2_train --val writes them")
        for file in files:
            yield _read_summary(file, name, metric, subject, undefined)
    elif path.suffix == ".json":
        yield _read_summary(path, name, metric, subject, undefined)
    else:
        yield _read_csv(path, name, metric)


def _read_csv(path: Path, name: str, metric: str) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as CSV ({error})") from None
    if list(table.columns) == COLUMNS:
        found = sorted(set(table["metric"]))
        table = table[table["metric"] == metric].rename(columns={"group": "patient", "value": "score"})
        if table.empty:
            raise InputError(f"{path}: no metric {metric!r}; it has {found}")
    if missing := [c for c in ("case", "patient", "score") if c not in table]:
        raise InputError(f"{path}: no column {', '.join(missing)}; it has {list(table.columns)}")
    if table.empty:
        raise InputError(f"{path}: it has no rows")
    for column in ("case", "patient"):
        if len(empty := table.index[table[column].str.strip() == ""]):
            raise InputError(f"{path}: row {empty[0] + 2} has no {column}")
    numbers = {c: pd.to_numeric(table[c], errors="coerce") for c in ("score", "fold", "seed") if c in table}
    for column, values in numbers.items():
        text = table.loc[values.isna() & ~table[column].str.strip().str.lower().isin(["", "nan"]), column]
        if len(text):
            raise InputError(f"{path}: row {text.index[0] + 2} has the {column} {text.iloc[0]!r}, which is not a number")
    for column in ("fold", "seed"):
        if column in numbers and len(empty := table.index[numbers[column].isna() | (numbers[column] % 1 != 0)]):
            raise InputError(f"{path}: row {empty[0] + 2} has no whole number as {column}")
    zero = pd.Series(0, index=table.index)
    config = pd.Series(name or path.stem, index=table.index) if name or "config" not in table else table["config"]
    fold, seed = (numbers.get(c, zero).astype(int) for c in ("fold", "seed"))
    return _tidy(config, fold, seed, table["patient"], table["case"], metric, numbers["score"])


def _read_summary(path: Path, name: str, metric: str, subject: re.Pattern[str], undefined: float | None) -> pd.DataFrame:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        cases = summary["metric_per_case"] if "metric_per_case" in summary else summary["results"]["all"]
        scores = [(_case_name(case), _labels(case, metric)) for case in cases]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: not a summary of nnU-Net with {metric!r} of each case ({type(error).__name__}: {error})"
        ) from None
    if not scores:
        raise InputError(f"{path}: it has no cases")
    folders = [parent.name for parent in path.resolve().parents]
    if "fold_all" in folders:
        raise InputError(f"{path}: fold_all was trained on the cases that it is tested on; rank the folds of a cross-validation")
    fold, seed = _number(r"fold_(\d+)", folders), _number(r"seed_?(\d+)", folders)
    config = name or next(folder for folder in folders if not NOT_A_NAME.fullmatch(folder))
    filled = [[v if undefined is None or math.isfinite(v) else undefined for v in labels] for _, labels in scores]
    names = [case for case, _ in scores]
    if not any(map(subject.search, names)):
        raise InputError(
            f"{path}: no case, such as {names[0]!r}, matches the subject pattern {subject.pattern!r}; set --subject so that it "
            f"finds the person in a case's name, or to '(?P<subject>.+)' if every case is another person"
        )
    people = [match["subject"] if (match := subject.search(case)) else case for case in names]
    return _tidy(config, fold, seed, people, names, metric, [sum(labels) / len(labels) for labels in filled])


def _case_name(case: dict[str, Any]) -> str:
    """nnU-Net v2: prediction_file; v1: test; validation_summary.json of this project: case."""
    file = next(case[key] for key in ("prediction_file", "test", "case") if key in case)
    return re.sub(r"\.(nii\.gz|nii|nrrd|mha|png|tif{1,2}|npz)$", "", re.split(r"[/\\]", str(file))[-1])


def count_unmatched(table: pd.DataFrame, subject: str) -> int:
    """Cases whose patient is the case itself because the pattern `subject` does not match."""
    pattern = _pattern(subject)
    alone = table.loc[table["case"] == table["group"], "case"].unique()
    return sum(not pattern.search(case) for case in alone)


def _labels(case: dict[str, Any], metric: str) -> list[float]:
    """The metric of each label but the background, in v2 below `metrics`."""
    labels = case.get("metrics") or {k: v for k, v in case.items() if isinstance(v, dict)}
    return [float("nan" if (v := values[metric]) is None else v) for label, values in labels.items() if label != "0"]


def _number(pattern: str, folders: Sequence[str]) -> int:
    return next((int(match[1]) for folder in folders if (match := re.fullmatch(pattern, folder))), 0)


def _pattern(subject: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(subject)
    except re.error as error:
        raise InputError(f"the subject pattern {subject!r} is not a regular expression: {error}") from None
    if "subject" not in pattern.groupindex:
        raise InputError(f"the subject pattern {subject!r} needs a group (?P<subject>...)")
    return pattern


def _tidy(config: Any, fold: Any, seed: Any, patients: Any, cases: Any, metric: str, values: Any) -> pd.DataFrame:
    columns = {"config": config, "fold": fold, "seed": seed, "group": patients, "case": cases, "value": values}
    return pd.DataFrame(columns).assign(study=STUDY, metric=metric)[COLUMNS]


def _problems(table: pd.DataFrame, bounds: tuple[float, float] | None) -> list[str]:
    """One sentence per problem that would make the ranking wrong."""
    problems = []
    twice = table[table.duplicated(["config", "fold", "seed", "case"])]
    if len(twice):
        row = twice.iloc[0]
        problems.append(
            f"{row['config']}, fold {row['fold']}, seed {row['seed']}: {len(twice)} score(s) are given twice, the first of case "
            f"{row['case']}; if these are repeated runs, number them (column seed, or a folder seed_K)"
        )
    undefined = table[~table["value"].map(math.isfinite)]
    if len(undefined):
        row = undefined.iloc[0]
        problems.append(
            f"{row['config']}: {len(undefined)} score(s) are missing or not finite, the first of case {row['case']}; --undefined "
            "sets the value of such scores (nnU-Net: a label that is in neither mask)"
        )
    if bounds:
        outside = table[(table["value"] < bounds[0]) | (table["value"] > bounds[1])]
        if len(outside):
            row = outside.iloc[0]
            problems.append(
                f"{row['config']}: {len(outside)} score(s) are outside {bounds[0]:g} to {bounds[1]:g}, the first of case "
                f"{row['case']} ({row['value']:g}); correct them, or set --range"
            )
    people = table.drop_duplicates(["case", "group"]).groupby("case")["group"].agg(list)
    if len(several := people[people.map(len) > 1]):
        problems.append(f"case {several.index[0]} belongs to several patients: {_some(several.iloc[0])}; a case has one patient")
    folds = table.groupby("group")["fold"].agg(lambda fold: sorted(set(fold)))
    if len(several := folds[folds.map(len) > 1]):
        problems.append(
            f"{len(several)} patient(s) are in several folds, the first is {several.index[0]} (folds {_some(several.iloc[0])}): "
            "cases of a patient were split between folds, or the folds differ between configurations or seeds; use the same "
            "split by patient everywhere, or correct --subject"
        )
    return problems or _missing_cases(table)


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
