"""CSV tables that a user's folder brings."""

from pathlib import Path

import pandas as pd

from quintet.errors import InputError


def read_text(path: Path) -> pd.DataFrame:
    """Every cell as text, without the spaces around it; empty is empty. Raises InputError where the file is no CSV table."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a CSV in UTF-8 ({str(error).splitlines()[0]})") from None
    if not isinstance(table.index, pd.RangeIndex):
        raise InputError(f"{path}: a row has more fields than the header; quote texts that hold commas")
    table.columns = table.columns.str.strip()
    return table.apply(lambda column: column.str.strip())
