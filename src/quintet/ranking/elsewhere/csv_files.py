"""CSV files of scores: the columns case, patient and score, and optionally config (default: the file's name), fold and seed (0);
or those of the tidy table."""

import csv
import re
from pathlib import Path

import pandas as pd

from quintet.errors import InputError
from quintet.results import COLUMNS

UNDEFINED = ("", "na", "n/a", "nan", "none", "null")


def read(path: Path, metric: str) -> pd.DataFrame:
    """The columns of the tidy table without `metric`. Raises InputError with the line of the first fault."""
    table = _read_text(path)
    if set(COLUMNS) <= set(table):
        found = sorted(set(table["metric"]))
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
        raise InputError(f"{path}: line {fulfilled.index[~fulfilled][0]} {problem}")


def _read_text(path: Path) -> pd.DataFrame:
    """All fields as text, spaces at their ends removed; the index is the number of the line. Empty lines are skipped."""
    lines, rows = [], []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for row in reader:
                if any(field.strip() for field in row):
                    lines.append(reader.line_num)
                    rows.append([re.sub(r"\s+", " ", field).strip() for field in row])
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text in UTF-8; save it as CSV (UTF-8, separated by commas)") from None
    except (OSError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV ({error})") from None
    if not rows:
        raise InputError(f"{path}: it is empty")
    header, *rows = rows
    if len(header) == 1 and (wrong := re.search("[;\t|]", header[0])):
        raise InputError(f"{path}: columns are separated by {wrong[0]!r}; separate them by commas")
    if len(set(header)) < len(header):
        raise InputError(f"{path}: a column is named twice in {', '.join(header)}")
    for line, row in zip(lines[1:], rows, strict=True):
        if len(row) != len(header):
            raise InputError(
                f"{path}: line {line} has {len(row)} fields, but the heading has {len(header)}; a comma within a field "
                "needs quotes, and a decimal mark is a point"
            )
    return pd.DataFrame(rows, columns=header, index=lines[1:], dtype=str)
