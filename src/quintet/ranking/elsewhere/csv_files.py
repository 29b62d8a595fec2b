"""CSV files of scores: the columns case, patient and score, and optionally config (default: the file's name), fold and seed (0);
or those of the tidy table."""

from pathlib import Path

import pandas as pd

from quintet.errors import InputError
from quintet.results import COLUMNS
from quintet.tables import read_text_table

UNDEFINED = ("", "na", "n/a", "nan", "none", "null")


def read(path: Path, metric: str) -> pd.DataFrame:
    """The columns of the tidy table without `metric`. Raises InputError with the row of the first fault."""
    table = read_text_table(path).map(lambda cell: " ".join(cell.split()))
    if set(COLUMNS) <= set(table):
        found = sorted(set(table["metric"]))
        if f"{metric}/pseudo_value" in found:
            raise InputError(
                f"{path}: a patient's {metric} depends on the other patients; rank {metric}/pseudo_value, whose mean is the same "
                "and whose variance contains that, without --range"
            )
        table = table[table["metric"] == metric].rename(columns={"group": "patient", "value": "score"})
        if table.empty:
            raise InputError(f"{path}: no metric {metric!r}; it has {', '.join(found)}")
    else:
        table = table.assign(study="")
    if missing := [c for c in ("case", "patient", "score") if c not in table]:
        raise InputError(f"{path}: no column {', '.join(missing)}; it has {', '.join(table.columns.drop('study'))}")
    if table.empty:
        raise InputError(f"{path}: it has no rows")
    for column in ("config", "fold", "seed"):
        if column not in table:
            table[column] = path.stem if column == "config" else "0"
    for column in ("case", "patient", "config"):
        _require(path, table[column] != "", f"has no {column}")
    for column in ("fold", "seed"):
        _require(path, table[column].str.fullmatch(r"\d{1,9}"), f"has no whole number as {column}")
    table["score"] = table["score"].mask(table["score"].str.lower().isin(UNDEFINED), "nan")
    numbers = pd.to_numeric(table["score"], errors="coerce")
    is_number = numbers.notna() | (table["score"] == "nan")
    _require(path, is_number, "has a score that is not a number")
    table = table.rename(columns={"patient": "group"}).assign(value=numbers)
    return table.astype({"fold": int, "seed": int})[[c for c in COLUMNS if c != "metric"]].reset_index(drop=True)


def _require(path: Path, fulfilled: pd.Series, problem: str) -> None:
    if not fulfilled.all():
        raise InputError(f"{path}: row {fulfilled.index[~fulfilled][0]} {problem}")
