"""The tidy per-case table: every evaluation writes one, and the ranking reads nothing else.

One row per value: study, config, fold, seed, group (patient), case, metric, value.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from quintet.errors import InputError
from quintet.files import atomic_file, write_json

COLUMNS = ["study", "config", "fold", "seed", "group", "case", "metric", "value"]
KEY = COLUMNS[:-1]


def to_tidy(
    values: pd.DataFrame, study: str, config: str, *, fold: int, seed: int, cases: Iterable[str], groups: Iterable[str]
) -> pd.DataFrame:
    """Turn `values` (one row per case, one column per metric) into the tidy table."""
    wide = values.reset_index(drop=True).assign(
        study=study, config=config, fold=fold, seed=seed, group=list(groups), case=list(cases)
    )
    return wide.melt(id_vars=KEY[:-1], var_name="metric", value_name="value")[COLUMNS]


def write(table: pd.DataFrame, path: Path) -> None:
    """Write a tidy table. Raises ValueError, a programming error, for a duplicate row, wrong columns or an empty table."""
    if list(table.columns) != COLUMNS or table.empty:
        raise ValueError(f"expected the columns {COLUMNS} and at least one row, got {list(table.columns)}")
    if (duplicated := table.duplicated(KEY)).any():
        raise ValueError(f"duplicate row: {table.loc[duplicated, KEY].iloc[0].to_dict()}")
    with atomic_file(path) as temporary:
        table.to_csv(temporary, index=False)


def write_scores(metrics: Mapping[str, float], path: Path) -> None:
    """Write the metrics that are committed to git: four decimals, without timings."""
    write_json(path, {name: round(value, 4) for name, value in metrics.items() if "seconds" not in name})


def read(paths: Iterable[Path]) -> pd.DataFrame:
    """Read and concatenate tidy tables. Raises InputError for a missing file or wrong columns."""
    tables = []
    for path in paths:
        if not Path(path).is_file():
            raise InputError(f"{path}: no such result table; run the stage that writes it (`dvc repro`)")
        # Only an empty value is missing: a patient may be called NA.
        dtypes = {"group": str, "case": str, "config": str}
        table = pd.read_csv(path, dtype=dtypes, keep_default_na=False, na_values={"value": [""]})
        if list(table.columns) != COLUMNS:
            raise InputError(f"{path}: expected the columns {COLUMNS}, got {list(table.columns)}")
        tables.append(table)
    return pd.concat(tables, ignore_index=True)
