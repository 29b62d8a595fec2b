"""Who trains, validates and is tested in each fold: our own folds, the official ones, or a hand-made file."""

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

from quintet import splits
from quintet.breakhis.tree import CLASSES, case_number, parse_name
from quintet.errors import InputError, InputProblemsError
from quintet.params import BreakHis
from quintet.tables import read_text_table

OFFICIAL = re.compile(r"dsfold(\d+)\.txt")


def make_folds(patients: pd.DataFrame, raw: Path, params: BreakHis) -> tuple[pd.DataFrame, list[str]]:
    """The part of each patient in each fold (columns fold, patient, part), and what a reader should know about it.

    `patients`: columns patient, class. Validating patients come out of the training ones (nested), by class.
    """
    if params.split == "official":
        testing, notes = _official(patients, Path(raw), params.folds)
    else:
        held_out = _grouped(patients, params) if params.split == "grouped" else _hand_made(Path(params.split), patients, params)
        testing, notes = [set(patients["patient"][held_out == fold]) for fold in range(params.folds)], []
    tables = []
    for name in CLASSES:
        if not (patients["class"] == name).any():
            raise InputError(f"{raw}: no {name} patient; give the folder that holds both classes")
    for fold, test in enumerate(testing):
        for name in CLASSES:
            own = set(patients["patient"][patients["class"] == name])
            if not test & own or not own - test:
                lacks = "tests" if not test & own else "trains on"
                raise InputError(f"fold {fold} {lacks} no {name} patient; lower breakhis.folds or use another breakhis.split")
        train = patients[~patients["patient"].isin(test)]
        groups = train["patient"].map(case_number)
        try:
            valid = splits.held_out_groups(list(groups), list(train["class"]), params.validation, seed=[params.split_seed, fold])
        except InputError as error:
            raise InputError(f"fold {fold}: {error}") from None
        parts = dict(zip(train["patient"], np.where(groups.isin(valid), "valid", "train"), strict=True))
        tables.append(patients[["patient"]].assign(fold=fold, part=[parts.get(p, "test") for p in patients["patient"]]))
    table = pd.concat(tables, ignore_index=True)[["fold", "patient", "part"]]
    return table, notes + _siblings(table)


def _grouped(patients: pd.DataFrame, params: BreakHis) -> np.ndarray:
    """Slides of one biopsy (14-22549AB, 14-22549CD) stay together."""
    groups = list(patients["patient"].map(case_number))
    return splits.grouped_folds(groups, params.folds, seed=params.split_seed, strata=list(patients["class"]))


def _hand_made(path: Path, patients: pd.DataFrame, params: BreakHis) -> np.ndarray:
    """A CSV with the columns patient, fold (where it is held out); every patient once."""
    if not path.is_file():
        raise InputError(f"breakhis.split: {path}: no such file; allowed are grouped, official or a CSV with patient,fold")
    table = read_text_table(path)
    if not {"patient", "fold"} <= set(table.columns):
        raise InputError(f"{path}: expected the columns patient,fold, got {','.join(table.columns)}")
    legal = [str(fold) for fold in range(params.folds)]
    problems = [
        f"row {i + 2}: fold {f!r} is none of 0 to {params.folds - 1}" for i, f in enumerate(table["fold"]) if f not in legal
    ]
    problems += [f"{p} stands twice; it would be trained and tested on" for p in table["patient"][table["patient"].duplicated()]]
    problems += [f"{p} is not listed" for p in sorted(set(patients["patient"]) - set(table["patient"]))]
    problems += [f"{p} is no patient of this data set" for p in sorted(set(table["patient"]) - set(patients["patient"]))]
    if problems:
        raise InputProblemsError(str(path), problems)
    held_out = dict(zip(table["patient"], table["fold"].astype(int), strict=True))
    return patients["patient"].map(held_out).to_numpy()


def read_official(path: Path) -> dict[str, dict[str, set[str]]]:
    """A dsfold file (lines NAME|MAGNIFICATION|FOLD|train or test): part -> patient -> its tumour types there."""
    parts: dict[str, dict[str, set[str]]] = {"train": defaultdict(set), "test": defaultdict(set)}
    own = OFFICIAL.fullmatch(path.name)
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
        elif own and cells[2] != own[1]:
            problems.append(f"line {number}: says fold {cells[2]}, the file's name {own[1]}; one of them is wrong")
        else:
            parts[cells[3]][named[1]].add(named[0])
    if problems:
        raise InputProblemsError(str(path), problems)
    return parts


def _official(patients: pd.DataFrame, raw: Path, folds: int) -> tuple[list[set[str]], list[str]]:
    """The testing patients of each dsfold file below `raw`. A patient on both sides trains: it was seen either way."""
    found: dict[int, Path] = {}
    for path in sorted(raw.rglob("dsfold*.txt")):
        if m := OFFICIAL.fullmatch(path.name):
            if int(m[1]) in found:
                raise InputError(f"breakhis.split=official: {found[int(m[1])]} and {path}: keep one of them")
            found[int(m[1])] = path
    if not found:
        raise InputError(f"breakhis.split=official: no dsfold1.txt ... below {raw}; put the data set's fold files there")
    if sorted(found) != list(range(1, folds + 1)):
        names = ", ".join(f"dsfold{number}.txt" for number in sorted(found))
        raise InputError(f"breakhis.split=official: {raw} has {names}, breakhis.folds is {folds}; they must agree")
    testing, notes, problems = [], [], []
    for _, path in sorted(found.items()):
        parts = read_official(path)
        both = sorted(set(parts["train"]) & set(parts["test"]))
        for patient in both:
            sides = ", ".join(f"{' and '.join(sorted(parts[part][patient]))} ({part})" for part in parts)
            notes.append(f"{path.name} puts patient {patient} on both sides: {sides}; here it trains")
        testing.append(set(parts["test"]) - set(both))
        unknown = sorted(set(patients["patient"]) - set(parts["train"]) - set(parts["test"]))
        problems += [f"{path.name} does not name patient {patient}" for patient in unknown]
    if problems:
        raise InputProblemsError(f"{raw} (breakhis.split=official)", problems)
    return [test & set(patients["patient"]) for test in testing], notes


def _siblings(table: pd.DataFrame) -> list[str]:
    """Slides of one biopsy in several parts of a fold: the data set counts them as patients of their own."""
    notes = []
    for (fold, case), rows in table.assign(case=table["patient"].map(case_number)).groupby(["fold", "case"]):
        if rows["part"].nunique() > 1:
            sides = ", ".join(f"{p} ({part})" for p, part in zip(rows["patient"], rows["part"], strict=True))
            notes.append(f"fold {fold}: slides of biopsy {case} in several parts: {sides}")
    return notes
