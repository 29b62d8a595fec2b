"""The clinical row as numbers: standardised, one-hot, with a flag for what is missing. Fitted on training patients only."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet.errors import InputError

MOST_CATEGORIES = 20
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Numeric:
    name: str
    mean: float
    sd: float


@dataclass(frozen=True)
class Category:
    name: str
    values: list[str]


@dataclass(frozen=True)
class Encoder:
    """`columns` in the table's order. A value that is missing, or a category that training never saw, gives zeros and its
    flag."""

    columns: list[Numeric | Category]

    @staticmethod
    def fit(table: pd.DataFrame) -> "Encoder":
        """`table`: training patients, features as text (empty: missing). A column without any value is left out."""
        columns: list[Numeric | Category] = []
        for name in table:
            values = table[name][table[name] != ""]
            numbers = pd.to_numeric(values, errors="coerce")
            if not len(values):
                continue
            if np.isfinite(numbers).all():
                columns.append(Numeric(str(name), float(numbers.mean()), float(numbers.std(ddof=0)) or 1.0))
            elif values.nunique() > MOST_CATEGORIES:
                odd = values[~np.isfinite(numbers)].iloc[0]
                raise InputError(
                    f"clinical column {name!r}: {values.nunique()} different texts such as {odd!r}; correct it, or "
                    f"leave it out by fusion.drop=[{name}]"
                )
            else:
                columns.append(Category(str(name), sorted(values.unique())))
        return Encoder(columns)

    def __call__(self, table: pd.DataFrame) -> tuple[Floats, NDArray[np.bool_], list[str]]:
        """Features `[N, width]`, whether a row holds any value `[N]`, and a note for each value that could not be used. A
        column that the table lacks is missing for everybody."""
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
                f"patient {p}: {column.name} is {texts[p]!r}, which training did not know; taken as missing"
                for p in table.index[~usable & (texts != "").to_numpy()]
            ]
            parts += [part, ~usable[:, None]]
            known |= usable
        return np.concatenate(parts, 1).astype(np.float32), known, notes

    def plain(self) -> list[dict[str, Any]]:
        """As plain types, for a saved model."""
        return [asdict(column) for column in self.columns]

    @staticmethod
    def from_plain(columns: Sequence[dict[str, Any]]) -> "Encoder":
        return Encoder([Category(**c) if "values" in c else Numeric(**c) for c in columns])


def refuse_leaks(table: pd.DataFrame, labels: pd.Series, target: str) -> None:
    """Raise where a feature gives the label away: it is named like it, or is one and the same in each class and never in
    another."""
    words = set(re.split(r"[^a-z]+", target.lower())) - {""}
    for name in table:
        known = table[name] != ""
        values, own = table[name][known], labels[known]
        named = target.lower() in str(name).lower() or set(re.split(r"[^a-z]+", str(name).lower())) >= words
        by_class = values.groupby(own).nunique()
        constant = own.nunique() > 1 and (by_class == 1).all() and values.nunique() == own.nunique() and known.mean() > 0.5
        if named or constant:
            how = "is named like the target" if named else f"has one value in each class of {target} and never in another"
            raise InputError(
                f"clinical column {name!r} {how}: it would give the answer away; leave it out by fusion.drop=[{name}]"
            )
