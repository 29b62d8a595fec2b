"""Clinical features as numbers: standardised or one-hot, with a flag for missing values. Fitted on training patients only."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet.errors import InputError

MAX_CATEGORIES = 20
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
    """Encodes `columns` in the table's order. A missing value, or a category that does not occur in training, becomes zeros and
    sets its flag."""

    columns: list[Numeric | Category]

    @staticmethod
    def fit(table: pd.DataFrame) -> "Encoder":
        """`table`: training patients, every feature as text (empty: missing). Columns without any value are left out."""
        columns: list[Numeric | Category] = []
        for name in table:
            values = table[name][table[name] != ""]
            numbers = pd.to_numeric(values, errors="coerce")
            if not len(values):
                continue
            if np.isfinite(numbers).all():
                columns.append(Numeric(str(name), float(numbers.mean()), float(numbers.std(ddof=0)) or 1.0))
            elif values.nunique() > MAX_CATEGORIES:
                example = values[~np.isfinite(numbers)].iloc[0]
                raise InputError(
                    f"clinical column {name!r}: {values.nunique()} different texts such as {example!r}; correct it, or "
                    f"leave it out with fusion.data.drop=[{name}]"
                )
            else:
                columns.append(Category(str(name), sorted(values.unique())))
        return Encoder(columns)

    def __call__(self, table: pd.DataFrame) -> tuple[Floats, NDArray[np.bool_], list[str]]:
        """Features `[N, width]`, whether a patient has any value `[N]`, and a note for each value that cannot be used. A column
        that the table lacks is missing for every patient."""
        parts, known, notes = [np.zeros((len(table), 0))], np.zeros(len(table), bool), []
        for column in self.columns:
            texts = table[column.name] if column.name in table else pd.Series("", index=table.index)
            if isinstance(column, Numeric):
                values = pd.to_numeric(texts, errors="coerce").to_numpy(float)
                usable = np.isfinite(values)
                part = np.where(usable, (np.where(usable, values, 0) - column.mean) / column.sd, 0)[:, None]
            else:
                part = np.stack([(texts == value).to_numpy(float) for value in column.values], 1)
                usable = part.any(1)
            notes += [
                f"patient {p}: {column.name} is {texts[p]!r}, which does not occur in the training data; treated as missing"
                for p in table.index[~usable & (texts != "").to_numpy()]
            ]
            parts += [part, ~usable[:, None]]
            known |= usable
        return np.concatenate(parts, 1).astype(np.float32), known, notes

    def to_dicts(self) -> list[dict[str, Any]]:
        """Plain types, for a saved model."""
        return [asdict(column) for column in self.columns]

    @staticmethod
    def from_dicts(columns: Sequence[dict[str, Any]]) -> "Encoder":
        return Encoder([Category(**c) if "values" in c else Numeric(**c) for c in columns])


def reject_leaks(table: pd.DataFrame, labels: pd.Series, target: str) -> None:
    """Raise InputError for a feature that reveals the label: its name contains the target's, or it has one value per class."""
    words = set(re.split(r"[^a-z]+", target.lower())) - {""}
    for name in table:
        known = table[name] != ""
        values, classes = table[name][known], labels[known]
        named = target.lower() in str(name).lower() or set(re.split(r"[^a-z]+", str(name).lower())) >= words
        by_class = values.groupby(classes).nunique()
        one_per_class = (by_class == 1).all() and values.nunique() == classes.nunique()
        if named or (one_per_class and classes.nunique() > 1 and known.mean() > 0.5):
            reason = "is named like the target" if named else f"has one value in each class of {target} and never in another"
            raise InputError(
                f"clinical column {name!r} {reason}: it would reveal the answer; leave it out with fusion.data.drop=[{name}]"
            )
