"""CSV tables that a user's folder brings."""

import csv
from collections import Counter
from pathlib import Path

import pandas as pd

from quintet.errors import InputError


def read_text_table(path: Path) -> pd.DataFrame:
    """Every cell as text, without the spaces around it; empty is empty. Raises InputError where the file is no CSV table."""
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            header = [name.strip() for name in next(csv.reader(file), [])]
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a CSV in UTF-8 ({str(error).splitlines()[0]})") from None
    if not isinstance(table.index, pd.RangeIndex):
        raise InputError(f"{path}: a row has more fields than the header; quote texts that hold commas")
    if twice := [name for name, count in Counter(header).items() if name and count > 1]:  # pandas would rename them
        raise InputError(f"{path}: the column {twice[0]!r} stands twice")
    table.columns = table.columns.str.strip()
    return table.apply(lambda column: column.str.strip())
