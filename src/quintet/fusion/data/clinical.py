"""Clinical features as numbers: standardised or one-hot, with a flag for missing values. Fitted on training patients only."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from quintet.errors import InputError

MAX_CATEGORIES = 20
MAX_CODES = 10  # different numbers of a category that has other texts too, such as grades 1, 2, 2a
MIN_DIFFERENT = 5  # numbers of a column of few patients, at least half of them different, that are no codes
MAX_SD = 20.0  # from the training mean: what is farther is an error, or a code such as -999
MIN_SPREAD = 1e-9  # SD of a column, as a fraction of its largest value
LEAK, MIN_FOR_LEAK = 0.995, 20  # AUC or rank correlation with the answer that no feature has; patients
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Numeric:
    name: str
    mean: float
    sd: float

    @property
    def width(self) -> int:
        """Number of features, the flag included."""
        return 2


@dataclass(frozen=True)
class Category:
    name: str
    values: list[str]

    @property
    def width(self) -> int:
        return len(self.values) + 1


@dataclass(frozen=True)
class Encoder:
    """Encodes `columns` in the table's order. A missing value, a category that does not occur in training, or a number far from
    all training values, becomes zeros and sets its flag."""

    columns: list[Numeric | Category]

    @staticmethod
    def fit(table: pd.DataFrame) -> "Encoder":
        """`table`: training patients, every feature as text (empty: missing). Columns without any value, and numbers without any
        spread, are left out. Raises InputError for a column that is neither numbers nor a few categories."""
        columns: list[Numeric | Category] = []
        for name in table:
            values = table[name][table[name] != ""]
            numbers = pd.to_numeric(values, errors="coerce")
            if not len(values):
                continue
            usable, out = np.isfinite(numbers), f"leave it out with fusion.data.drop=[{name}]"
            if usable.all():
                sd = float(numbers.std(ddof=0))
                if sd > MIN_SPREAD * numbers.abs().max():
                    columns.append(Numeric(str(name), float(numbers.mean()), sd))
                continue
            example = values[~usable].iloc[0]
            different = numbers[usable].nunique()
            continuous = different > MAX_CODES or different >= max(MIN_DIFFERENT, usable.sum() / 2)
            if continuous and usable.mean() > 0.5:
                count = int((~usable).sum())
                raise InputError(
                    f"clinical column {name!r}: {count} value(s) are no numbers, such as {example!r}; empty them, or {out}"
                )
            if values.nunique() > MAX_CATEGORIES:
                found = f"{values.nunique()} different texts such as {example!r}"
                raise InputError(f"clinical column {name!r}: {found}; correct it, or {out}")
            reject_spellings(values, f"clinical column {name!r}")
            columns.append(Category(str(name), sorted(values.unique())))
        return Encoder(columns)

    def __call__(self, table: pd.DataFrame) -> tuple[Floats, NDArray[np.bool_], list[str]]:
        """Features `[N, width]`, whether a patient has any value `[N]`, and a note for each value that cannot be used. A column
        that the table lacks is missing for every patient."""
        parts: list[NDArray[Any]] = [np.zeros((len(table), 0))]
        known, notes = np.zeros(len(table), bool), []
        for column in self.columns:
            texts = table[column.name] if column.name in table else pd.Series("", index=table.index)
            if isinstance(column, Numeric):
                values = pd.to_numeric(texts, errors="coerce").to_numpy(float)
                distance = (np.where(np.isfinite(values), values, np.inf) - column.mean) / column.sd
                usable: NDArray[np.bool_] = np.abs(distance) <= MAX_SD
                why = f"far from the training mean {column.mean:.4g}"
                part = np.where(usable, distance, 0.0)[:, None]
            else:
                part = np.stack([(texts == value).to_numpy(float) for value in column.values], 1)
                usable, why = part.max(1) > 0.5, "which does not occur in the training data"
            notes += [
                f"patient {p}: {column.name} is {texts[p]!r}, {why}; treated as missing"
                for p in table.index[~usable & (texts != "").to_numpy()]
            ]
            parts += [part, ~usable[:, None]]
            known |= usable
        return np.concatenate(parts, 1).astype(np.float32), known, notes

    @property
    def categories(self) -> dict[str, list[str]]:
        """The texts that each column without numbers had in training."""
        return {column.name: column.values for column in self.columns if isinstance(column, Category)}

    def to_dicts(self) -> list[dict[str, Any]]:
        """Plain types, for a saved model."""
        return [asdict(column) for column in self.columns]

    @staticmethod
    def from_dicts(columns: Sequence[dict[str, Any]]) -> "Encoder":
        return Encoder([Category(**c) if "values" in c else Numeric(**c) for c in columns])


def reject_spellings(values: pd.Series, where: str) -> None:
    """Raise InputError if two of the texts differ only in capitals, accents' encoding or spaces."""
    spelling: dict[str, str] = {}
    for value in sorted(values.unique()):
        plain = "".join(unicodedata.normalize("NFKC", str(value)).casefold().split())
        if plain in spelling:
            raise InputError(f"{where}: {spelling[plain]!r} and {value!r} differ in spelling only; use one of them")
        spelling[plain] = str(value)


def reject_leaks(table: pd.DataFrame, labels: pd.Series, target: str, times: pd.Series | None = None) -> None:
    """Raise InputError for a feature that reveals the answer: its name has the target's words, it has one value per class of
    `labels` (of survival: events) or is missing in whole classes, its numbers separate two classes without error, or they have
    the order of the survival `times`."""
    words = _words(target)
    for name in table:
        known = table[name] != ""
        values, classes = table[name][known], labels[known]
        by_class = values.groupby(classes).nunique()
        one_per_class = (by_class == 1).all() and values.nunique() == classes.nunique()
        reason = ""
        if words and _words(str(name)) >= words:
            reason = f"is named like the target {target}"
        elif one_per_class and classes.nunique() > 1 and known.mean() > 0.5:
            reason = f"has one value in each class of {target} and never in another"
        elif len(known) >= MIN_FOR_LEAK and known.nunique() == 2 and (known.groupby(labels).nunique() == 1).all():
            reason = f"is missing in some classes of {target} and never in the others"
        elif known.sum() >= MIN_FOR_LEAK and known.mean() > 0.5:
            numbers = pd.to_numeric(values, errors="coerce")
            if numbers.notna().all() and numbers.nunique() > 2:
                if classes.nunique() == 2 and abs(roc_auc_score(classes == classes.max(), numbers) - 0.5) > LEAK - 0.5:
                    reason = f"separates the classes of {target} without error"
                elif times is not None and abs(numbers.corr(times[known], method="spearman")) > LEAK:
                    reason = f"has the order of {target}"
        if reason:
            raise InputError(
                f"clinical column {name!r} {reason}: it would reveal the answer; leave it out with fusion.data.drop=[{name}]"
            )


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z]+", name.lower())) - {""}
