"""Reproducible train/valid/test splits and folds: random, stratified or grouped, with a check for leaks."""

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold, train_test_split

from quintet.errors import InputError, InputProblemsError
from quintet.tables import read_text_table, spelled_alike

PARTS = ("train", "valid", "test")


def random_split(count: int, *, seed: int, strata: Sequence[str] | None = None) -> list[str]:
    """Split `count` rows 70/15/15 by two calls of scikit-learn's `train_test_split`; returns one part per row.

    With `strata` (one per row) every part gets the same proportion of each stratum. Raises InputError if there are too few rows,
    in all or of a stratum.
    """
    if strata is not None:
        names, counts = np.unique(np.asarray(strata), return_counts=True)
        for name, n in zip(names, counts, strict=True):
            if n < 6:
                raise InputError(
                    f"category {str(name)!r} has {n} image(s), too few: a stratified split needs 6; choose another split"
                )
    rows = np.arange(count)
    try:
        train, rest = train_test_split(rows, test_size=0.3, random_state=seed, stratify=strata)
        rest_strata = None if strata is None else np.asarray(strata)[rest]
        valid, test = train_test_split(rest, test_size=0.5, random_state=seed, stratify=rest_strata)
    except ValueError as error:
        raise InputError(f"{count} rows cannot be split 70/15/15 ({error}); choose another split") from None
    parts = np.empty(count, dtype=object)
    for part, part_rows in zip(PARTS, (train, valid, test), strict=True):
        parts[part_rows] = part
    return list(parts)


def grouped_split(groups: Sequence[str], strata: Sequence[str], *, seed: int) -> list[str]:
    """Split rows about 70/15/15, with every group in one part and strata balanced; returns one part per row.

    Of 20 stratified group folds, 3 random ones are for testing, 3 for validation and 14 for training. Raises InputError if there
    are fewer than 20 groups.
    """
    folds = 20
    group_count = len(set(groups))
    if group_count < folds:
        raise InputError(f"a grouped split needs at least {folds} groups (patients), got {group_count}; use a split file")
    if max(Counter(strata).values()) < folds:  # every stratum is too small to balance
        strata = ["all"] * len(strata)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    role = np.random.default_rng(seed).permutation(folds)  # scikit-learn deals the largest groups to the first folds
    parts = np.empty(len(groups), dtype=object)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # rare strata are balanced as far as possible
        for fold, (_, rows) in enumerate(splitter.split(np.zeros(len(groups)), list(strata), list(groups))):
            parts[rows] = "test" if role[fold] < 3 else "valid" if role[fold] < 6 else "train"
    return list(parts)


def grouped_folds(groups: Sequence[str], folds: int, *, seed: int, strata: Sequence[str] | None = None) -> NDArray[np.int64]:
    """The fold in which each row is held out, `[rows]`. Groups (patients) are shuffled by `seed` and spread evenly over folds.

    With `strata` (one per row) each stratum is also spread evenly. Raises InputError if there are fewer groups than folds,
    overall or in any stratum.
    """
    names, first = np.unique(np.asarray(groups), return_index=True)
    if len(names) < folds:
        raise InputError(f"{folds} folds need at least {folds} subjects, got {len(names)}; lower the number of folds")
    if strata is None:
        splitter, group_strata = KFold(folds, shuffle=True, random_state=seed), None
    else:
        splitter, group_strata = StratifiedKFold(folds, shuffle=True, random_state=seed), np.asarray(strata)[first]
        for stratum, count in zip(*np.unique(group_strata, return_counts=True), strict=True):
            if count < folds:
                raise InputError(
                    f"{folds} folds need at least {folds} patients of each class, {stratum} has {count}; lower `folds`"
                )
    fold_of: dict[str, int] = {}
    for fold, (_, rows) in enumerate(splitter.split(names, group_strata)):
        fold_of |= {names[row]: fold for row in rows}
    return np.array([fold_of[group] for group in groups])


def held_out_groups(groups: Sequence[str], strata: Sequence[str], fraction: float, *, seed: Sequence[int]) -> set[str]:
    """Draw about `fraction` of the groups of each stratum: at least one and never all.

    Raises InputError if a stratum has fewer than two groups.
    """
    held_out: set[str] = set()
    for index, stratum in enumerate(sorted(set(strata))):
        names = sorted({group for group, own in zip(groups, strata, strict=True) if own == stratum})
        if len(names) < 2:
            raise InputError(f"{stratum} has {len(names)} patient(s); at least two are needed, as one is held out")
        count = min(max(1, round(fraction * len(names))), len(names) - 1)
        held_out |= set(np.random.default_rng([*seed, index]).permutation(names)[:count])
    return held_out


def unknown_to_git() -> str:
    """The end of a sentence about a file that is missing: a queued or temporary experiment runs in a copy of what git knows."""
    return "; this experiment runs in a copy of what git knows: git add it" if ".dvc/tmp/exps/" in Path.cwd().as_posix() else ""


def read_split(path: Path, ids: Sequence[str], *, column: str = "stem") -> list[str]:
    """Read a user's split file, a CSV with `column` and `split`; returns the part of each id.

    Raises InputError if the file does not exist or a column is missing, and InputProblemsError if an id is missing or repeated, a
    part is unknown or a part is empty.
    """
    if not Path(path).is_file():
        raise InputError(
            f"{path}: no such split file (CSV with the columns {column},split), nor a built-in split of that name"
            + unknown_to_git()
        )
    table = read_text_table(path)
    if not {column, "split"} <= set(table.columns):
        raise InputError(f"{path}: expected the columns {column},split, got {','.join(table.columns)}")
    known = ", ".join(PARTS)
    own = table[table[column].isin(ids)]  # the split that fusion writes has parts for others, too
    problems = [f"{path} row {i}: split {s!r} is not one of {known}" for i, s in own["split"].items() if s not in PARTS]
    problems += [f"{path}: {name} is listed twice" for name in table.loc[table[column].duplicated(), column]]
    others = sorted(set(table[column]) - set(ids))
    for name in sorted(set(ids) - set(table[column])):
        alike = next((other for other in others if other.startswith(f"{name}.")), None) or spelled_alike(name, others)
        problems.append(f"{path}: {name} is not listed" + (f"; is it {alike!r}? Write both alike" if alike else ""))
    if not problems:
        unused = [part for part in PARTS if part not in set(own["split"])]
        problems += [f"{path}: none of these cases has split {part}; assign some" for part in unused]
    if problems:
        raise InputProblemsError(str(path), problems)
    part_of = dict(zip(table[column], table["split"], strict=True))
    return [part_of[i] for i in ids]


def leaks(parts: Sequence[str], groups: Sequence[str]) -> list[str]:
    """The groups that are in more than one part, sorted."""
    part_counts = pd.DataFrame({"part": parts, "group": groups}).groupby("group")["part"].nunique()
    return sorted(part_counts.index[part_counts > 1])


def reject_leaks(parts: Sequence[str], groups: Sequence[str], ids: Sequence[str], *, remedy: str) -> None:
    """Raise InputProblemsError, listing every member, if a group is in more than one part; `remedy` tells the user what to do."""
    if leaking := leaks(parts, groups):
        table = pd.DataFrame({"part": parts, "group": groups, "id": ids})
        problems = [
            f"{group}: " + ", ".join(f"{i} ({p})" for i, p in zip(rows["id"], rows["part"], strict=True))
            for group, rows in table[table["group"].isin(leaking)].groupby("group")
        ]
        raise InputProblemsError(f"the split puts one patient in several parts ({remedy})", problems)
