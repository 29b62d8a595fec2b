"""CSV tables supplied by the user."""

import csv
from collections import Counter
from pathlib import Path

import pandas as pd

from quintet.errors import InputError


def read_text_table(path: Path) -> pd.DataFrame:
    """Read a CSV file with every cell as stripped text; empty cells are empty strings.

    Raises InputError if the file is not UTF-8 CSV, a row is longer than the header, or a column name is repeated.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            header = [name.strip() for name in next(csv.reader(file), [])]
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a CSV file in UTF-8 ({str(error).splitlines()[0]})") from None
    if not isinstance(table.index, pd.RangeIndex):
        raise InputError(f"{path}: a row has more fields than the header; quote text that contains commas")
    if repeated := [name for name, count in Counter(header).items() if name and count > 1]:  # pandas would rename them
        raise InputError(f"{path}: the column {repeated[0]!r} is listed twice")
    table.columns = table.columns.str.strip()
    return table.apply(lambda column: column.str.strip())
