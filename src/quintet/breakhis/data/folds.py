"""The part of each patient in each fold: our own folds, the data set's official ones, or a hand-made file."""

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet import splits
from quintet.breakhis.data.classes import CLASSES, case_number
from quintet.breakhis.data.tree import parse_name
from quintet.errors import InputError, InputProblemsError
from quintet.params.breakhis import BreakHisData
from quintet.tables import read_text_table

OFFICIAL = re.compile(r"dsfold(\d+)\.txt")


def make_folds(patients: pd.DataFrame, raw: Path, params: BreakHisData) -> tuple[pd.DataFrame, list[str]]:
    """The part of each patient in each fold (columns fold, patient, part), and notes that a reader should see.

    `patients` has the columns patient and class. In each fold some training patients of each class are held out for validation.
    """
    for name in CLASSES:
        if not (patients["class"] == name).any():
            raise InputError(f"{raw}: no {name} patient; give the folder that holds both classes")
    if params.split == "official":
        test_sets, notes = _official(patients, Path(raw), params.folds)
    else:
        test_fold = _grouped(patients, params) if params.split == "grouped" else _hand_made(Path(params.split), patients, params)
        test_sets, notes = [set(patients["patient"][test_fold == fold]) for fold in range(params.folds)], []
    tables = []
    for fold, test in enumerate(test_sets):
        for name in CLASSES:
            members = set(patients["patient"][patients["class"] == name])
            if not test & members or not members - test:
                lacks = "tests" if not test & members else "trains on"
                raise InputError(
                    f"fold {fold} {lacks} no {name} patient; lower breakhis.data.folds or use another breakhis.data.split"
                )
        train = patients[~patients["patient"].isin(test)]
        groups = train["patient"].map(case_number)
        try:
            valid = splits.held_out_groups(list(groups), list(train["class"]), params.validation, seed=[params.split_seed, fold])
        except InputError as error:
            raise InputError(f"fold {fold}: {error}") from None
        parts = dict(zip(train["patient"], np.where(groups.isin(valid), "valid", "train"), strict=True))
        tables.append(patients[["patient"]].assign(fold=fold, part=[parts.get(p, "test") for p in patients["patient"]]))
    table = pd.concat(tables, ignore_index=True)[["fold", "patient", "part"]]
    return table, notes + _separated_slides(table)


def _grouped(patients: pd.DataFrame, params: BreakHisData) -> NDArray[np.int64]:
    """The fold that tests each patient; slides of one biopsy (14-22549AB, 14-22549CD) stay together."""
    groups = list(patients["patient"].map(case_number))
    return splits.grouped_folds(groups, params.folds, seed=params.split_seed, strata=list(patients["class"]))


def _hand_made(path: Path, patients: pd.DataFrame, params: BreakHisData) -> NDArray[np.int64]:
    """The fold that tests each patient, from a CSV with the columns patient and fold."""
    if not path.is_file():
        raise InputError(f"breakhis.data.split: {path}: no such file; choose grouped, official or a CSV with patient,fold")
    table = read_text_table(path)
    if not {"patient", "fold"} <= set(table.columns):
        raise InputError(f"{path}: expected the columns patient,fold, got {','.join(table.columns)}")
    legal = [str(fold) for fold in range(params.folds)]
    problems = [
        f"row {i}: fold {f!r} is not a whole number from 0 to {params.folds - 1}"
        for i, f in table["fold"].items()
        if f not in legal
    ]
    repeated = table["patient"][table["patient"].duplicated()]
    problems += [f"{patient} is listed twice; every patient is tested in one fold" for patient in repeated]
    problems += [f"{patient} is not listed" for patient in sorted(set(patients["patient"]) - set(table["patient"]))]
    unknown = sorted(set(table["patient"]) - set(patients["patient"]))
    problems += [f"{patient} is not a patient of this data set" for patient in unknown]
    if problems:
        raise InputProblemsError(str(path), problems)
    test_fold = dict(zip(table["patient"], table["fold"].astype(int), strict=True))
    return patients["patient"].map(test_fold).to_numpy()


def read_official(path: Path) -> dict[str, dict[str, set[str]]]:
    """Read a dsfold file (lines NAME|MAGNIFICATION|FOLD|train or test): part -> patient -> its tumour types in that part."""
    parts: dict[str, dict[str, set[str]]] = {"train": defaultdict(set), "test": defaultdict(set)}
    in_name = OFFICIAL.fullmatch(path.name)
    problems = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as text in UTF-8 ({error})") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        cells = line.strip().split("|")
        named = parse_name(Path(cells[0]).stem)
        if len(cells) != 4 or named is None or cells[3] not in parts or f"{cells[1]}X" != named[2]:
            problems.append(f"line {number}: {line.strip()!r}: expected NAME|MAGNIFICATION|FOLD|train or test")
        elif in_name and cells[2] != in_name[1]:
            problems.append(f"line {number}: it names fold {cells[2]}, the file name fold {in_name[1]}; one of them is wrong")
        else:
            parts[cells[3]][named[1]].add(named[0])
    if problems:
        raise InputProblemsError(str(path), problems)
    return parts


def _official(patients: pd.DataFrame, raw: Path, folds: int) -> tuple[list[set[str]], list[str]]:
    """The test patients of each dsfold file below `raw`, and notes. A patient that a file lists under both training and
    test is used for training: the network has seen it either way."""
    test_sets, notes, problems = [], [], []
    for path in _official_files(raw, folds):
        parts = read_official(path)
        both = sorted(set(parts["train"]) & set(parts["test"]))
        for patient in both:
            sides = ", ".join(f"{' and '.join(sorted(parts[part][patient]))} ({part})" for part in parts)
            notes.append(f"{path.name} puts patient {patient} in training and test: {sides}; here it is used for training")
        test_sets.append((set(parts["test"]) - set(both)) & set(patients["patient"]))
        unknown = sorted(set(patients["patient"]) - set(parts["train"]) - set(parts["test"]))
        problems += [f"{path.name} does not name patient {patient}" for patient in unknown]
    if problems:
        raise InputProblemsError(f"{raw} (breakhis.data.split=official)", problems)
    return test_sets, notes


def _official_files(raw: Path, folds: int) -> list[Path]:
    """dsfold1.txt ... below `raw`, in order; there must be as many as `folds`."""
    found: dict[int, Path] = {}
    for path in sorted(raw.rglob("dsfold*.txt")):
        if match := OFFICIAL.fullmatch(path.name):
            number = int(match[1])
            if number in found:
                raise InputError(f"breakhis.data.split=official: {found[number]} and {path}: keep one of them")
            found[number] = path
    if not found:
        raise InputError(f"breakhis.data.split=official: no dsfold1.txt ... below {raw}; put the data set's fold files there")
    if sorted(found) != list(range(1, folds + 1)):
        names = ", ".join(f"dsfold{number}.txt" for number in sorted(found))
        raise InputError(f"breakhis.data.split=official: {raw} has {names}, breakhis.data.folds is {folds}; they must agree")
    return [path for _, path in sorted(found.items())]


def _separated_slides(table: pd.DataFrame) -> list[str]:
    """Notes on slides of one biopsy in several parts of a fold: the data set counts them as separate patients."""
    notes = []
    for (fold, case), rows in table.assign(case=table["patient"].map(case_number)).groupby(["fold", "case"]):
        if rows["part"].nunique() > 1:
            sides = ", ".join(f"{p} ({part})" for p, part in zip(rows["patient"], rows["part"], strict=True))
            notes.append(f"fold {fold}: slides of biopsy {case} in several parts: {sides}")
    return notes
