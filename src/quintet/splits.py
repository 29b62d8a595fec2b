"""Splits into train, valid and test: reproducible, stratified, grouped, and checked for leaks."""

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold, train_test_split

from quintet.errors import InputError, InputProblemsError
from quintet.tables import read_text_table

PARTS = ("train", "valid", "test")


def random_split(count: int, *, seed: int, strata: Sequence[str] | None = None) -> list[str]:
    """Twice `train_test_split` over the row order: 0.3 of the rows leave, half of them each way (70/15/15).

    With `strata` every part has each stratum's share; a stratum too small for that is an error.
    """
    if strata is not None:
        names, counts = np.unique(np.asarray(strata), return_counts=True)
        for name, n in zip(names, counts, strict=True):
            if n < 4:
                raise InputError(f"category {str(name)!r} has {n} image(s): a stratified split needs 4; choose another split")
    rows = np.arange(count)
    try:
        train, rest = train_test_split(rows, test_size=0.3, random_state=seed, stratify=strata)
        left = None if strata is None else np.asarray(strata)[rest]
        valid, test = train_test_split(rest, test_size=0.5, random_state=seed, stratify=left)
    except ValueError as error:
        raise InputError(f"{count} rows cannot be split 70/15/15: {error}") from None
    parts = np.empty(count, dtype=object)
    for name, chosen in zip(PARTS, (train, valid, test), strict=True):
        parts[chosen] = name
    return list(parts)


def grouped_split(groups: Sequence[str], strata: Sequence[str], *, seed: int) -> list[str]:
    """70/15/15 with each group on one side and strata balanced: 3 of 20 folds test, 3 validate, 14 train."""
    folds = 20
    distinct = len(set(groups))
    if distinct < folds:
        raise InputError(f"a grouped split needs at least {folds} groups (patients), got {distinct}; use a split file")
    if max(Counter(strata).values()) < folds:  # too few of each to balance
        strata = ["all"] * len(strata)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    parts = np.empty(len(groups), dtype=object)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # a rare stratum is balanced as far as it goes
        for fold, (_, rows) in enumerate(splitter.split(np.zeros(len(groups)), list(strata), list(groups))):
            parts[rows] = "test" if fold < 3 else "valid" if fold < 6 else "train"
    return list(parts)


def grouped_folds(groups: Sequence[str], folds: int, *, seed: int, strata: Sequence[str] | None = None) -> NDArray[np.int64]:
    """The fold in which each row is held out, in an order drawn by seed: as many groups (patients) in each fold as possible, or
    with `strata` (one per row) each stratum spread evenly, which needs as many groups of each as folds."""
    names, first = np.unique(np.asarray(groups), return_index=True)
    if len(names) < folds:
        raise InputError(f"{folds} folds need at least {folds} subjects, got {len(names)}; lower the number of folds")
    if strata is None:
        splitter, kinds = KFold(folds, shuffle=True, random_state=seed), None
    else:
        splitter, kinds = StratifiedKFold(folds, shuffle=True, random_state=seed), np.asarray(strata)[first]
        for kind, count in zip(*np.unique(kinds, return_counts=True), strict=True):
            if count < folds:
                raise InputError(f"{folds} folds need at least {folds} patients of each class, {kind} has {count}; lower `folds`")
    held_out: dict[str, int] = {}
    for fold, (_, rows) in enumerate(splitter.split(names, kinds)):
        held_out |= {names[row]: fold for row in rows}
    return np.array([held_out[group] for group in groups])


def held_out_groups(groups: Sequence[str], strata: Sequence[str], share: float, *, seed: Sequence[int]) -> set[str]:
    """About `share` of the groups of each stratum, at least one of each and never all."""
    chosen: set[str] = set()
    for number, kind in enumerate(sorted(set(strata))):
        names = sorted({group for group, own in zip(groups, strata, strict=True) if own == kind})
        if len(names) < 2:
            raise InputError(f"{kind} has {len(names)} patient(s) to train on: two are needed, one of them validates")
        count = min(max(1, round(share * len(names))), len(names) - 1)
        chosen |= set(np.random.default_rng([*seed, number]).permutation(names)[:count])
    return chosen


def read_split(path: Path, ids: Sequence[str], *, column: str = "stem") -> list[str]:
    """A hand-made split: CSV with `column` and `split`; every id must stand in it exactly once."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such split file (CSV with {column},split), nor a split that params.yaml names")
    table = read_text_table(path)
    if not {column, "split"} <= set(table.columns):
        raise InputError(f"{path}: expected the columns {column},split, got {','.join(table.columns)}")
    problems = [f"row {i + 2}: split {s!r} is none of {', '.join(PARTS)}" for i, s in enumerate(table["split"]) if s not in PARTS]
    problems += [f"{name} stands twice" for name in table.loc[table[column].duplicated(), column]]
    missing = sorted(set(ids) - set(table[column]))
    problems += [f"{name} is not listed" for name in missing]
    if not problems:
        problems += [f"no row says {part}" for part in PARTS if part not in set(table["split"])]
    if problems:
        raise InputProblemsError(str(path), problems)
    chosen = dict(zip(table[column], table["split"], strict=True))
    return [chosen[i] for i in ids]


def leaks(parts: Sequence[str], groups: Sequence[str]) -> list[str]:
    """The groups that stand in more than one part, sorted."""
    spread = pd.DataFrame({"part": parts, "group": groups}).groupby("group")["part"].nunique()
    return sorted(spread.index[spread > 1])


def refuse_leaks(parts: Sequence[str], groups: Sequence[str], ids: Sequence[str], *, remedy: str) -> None:
    """Raise, naming every member, if a group stands in more than one part."""
    if found := leaks(parts, groups):
        table = pd.DataFrame({"part": parts, "group": groups, "id": ids})
        problems = [
            f"{group}: " + ", ".join(f"{i} ({p})" for i, p in zip(rows["id"], rows["part"], strict=True))
            for group, rows in table[table["group"].isin(found)].groupby("group")
        ]
        raise InputProblemsError(f"the split puts one patient into several parts ({remedy})", problems)
