"""Summaries of nnU-Net's validation: v2's summary.json, v1's, and validation_summary.json of this project.

A case's score is the mean over its labels, without the background. Folder names give the configuration (above fold_K), the fold
(fold_K) and the seed (seed_K or seedK).
"""

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from quintet.errors import InputError
from quintet.imaging.folders import refuse_unlistable

SUMMARIES = ("summary.json", "validation_summary.json")
DERIVED = re.compile(r"crossval_results\w*|cv_niftis\w*|\w*postprocessed")  # folders that repeat the folds' cases
NOT_A_NAME = re.compile(r"fold_\d+|seed_?\d+|validation\w*|evaluation")


def subject_pattern(subject: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(subject)
    except re.error as error:
        raise InputError(f"the subject pattern {subject!r} is not a regular expression: {error}") from None
    if "subject" not in pattern.groupindex:
        raise InputError(f"the subject pattern {subject!r} needs a group (?P<subject>...)")
    return pattern


def count_unmatched(table: pd.DataFrame, subject: str) -> int:
    """Cases whose patient is the case itself because the pattern `subject` does not match."""
    pattern = subject_pattern(subject)
    alone = table.loc[table["case"] == table["group"], "case"].unique()
    return sum(not pattern.search(case) for case in alone)


def find_summaries(folder: Path) -> list[Path]:
    """The summaries below a folder, links included, without those that repeat the folds' cases."""
    found, visited = [], set()
    for place, subfolders, files in os.walk(folder, onerror=refuse_unlistable, followlinks=True):
        if (real := os.path.realpath(place)) in visited:  # a link in a circle
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if not DERIVED.fullmatch(name))
        found += [Path(place) / name for name in files if name in SUMMARIES]
    if not found:
        raise InputError(f"{folder}: no {' or '.join(SUMMARIES)} below this folder; nnUNetv2_train --val writes them")
    return found


def read(path: Path, metric: str, subject: re.Pattern[str], undefined: float | None) -> pd.DataFrame:
    """The columns of the tidy table without `metric`, and `labels`: the names of the labels in the mean."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        cases = summary["metric_per_case"] if "metric_per_case" in summary else summary["results"]["all"]
        scores = {_case_name(case): _labels(case, metric) for case in cases}
        if len(scores) < len(cases):
            raise InputError(f"{path}: a case is listed twice")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not a summary of nnU-Net with {metric!r} of each case ({error})") from None
    if not scores:
        raise InputError(f"{path}: it has no cases")
    config, fold, seed = _describe(path)
    patients = {case: match["subject"] if (match := subject.search(case)) else case for case in scores}
    if not any(map(subject.search, scores)) or not all(patients.values()):
        raise InputError(
            f"{path}: the subject pattern {subject.pattern!r} finds no patient in a case, such as {next(iter(scores))!r}; set "
            "--subject so that it does, or to '(?P<subject>.+)' if every case is another patient"
        )
    rows = []
    for case, labels in scores.items():
        values = [v if undefined is None or math.isfinite(v) else undefined for v in labels.values()]
        rows.append((patients[case], case, sum(values) / len(values), ", ".join(sorted(labels))))
    table = pd.DataFrame(rows, columns=["group", "case", "value", "labels"])
    return table.assign(study="", config=config, fold=fold, seed=seed)


def _describe(path: Path) -> tuple[str, int, int]:
    """Configuration, fold and seed."""
    folders = [parent.name for parent in path.absolute().parents]
    for folder in folders:
        if folder == "fold_all":
            raise InputError(f"{path}: fold_all was trained on the cases that it is tested on; rank a cross-validation")
        if DERIVED.fullmatch(folder):
            raise InputError(
                f"{path}: {folder} repeats the cases of the folds; name the folder that contains fold_0, fold_1, ..."
            )
        if re.match(r"(?i)fold[_\d]", folder) and not re.fullmatch(r"fold_\d+", folder):
            raise InputError(f"{path}: which fold is {folder}? Name the folder fold_0, fold_1, ...")
    config = next((folder for folder in folders if folder and not NOT_A_NAME.fullmatch(folder)), path.stem)
    return config, _number(r"fold_(\d+)", folders), _number(r"seed_?(\d+)", folders)


def _case_name(case: dict[str, Any]) -> str:
    """nnU-Net v2: prediction_file; v1: test; validation_summary.json of this project: case."""
    file = next((case[key] for key in ("prediction_file", "test", "case") if key in case), None)
    if file is None:
        raise KeyError("a case without prediction_file")
    return re.sub(r"\.(nii\.gz|nii|nrrd|mha|png|tif{1,2}|npz)$", "", re.split(r"[/\\]", str(file))[-1])


def _labels(case: dict[str, Any], metric: str) -> dict[str, float]:
    """The metric of each label but the background, in v2 below `metrics`."""
    labels = case["metrics"] if "metrics" in case else {k: v for k, v in case.items() if isinstance(v, dict)}
    values = {label: own for label, own in labels.items() if label != "0"}
    if not values:
        raise ValueError("a case without labels")
    for own in values.values():
        if metric not in own:
            raise KeyError(f"available: {', '.join(own)}")
    return {label: math.nan if own[metric] is None else float(own[metric]) for label, own in values.items()}


def _number(pattern: str, folders: Sequence[str]) -> int:
    return next((int(match[1]) for folder in folders if (match := re.fullmatch(pattern, folder))), 0)
