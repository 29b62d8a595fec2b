"""A run folder as MLflow wants it: tags, metrics with steps and times, names that it takes."""

import csv
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from quintet.runs import Record

T = TypeVar("T")
Value = tuple[str, float, int, int]  # metric name, value, time in ms, step


def tags_of(record: Record) -> dict[str, str]:
    from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

    own = {name: str(getattr(record, name)) for name in ("study", "config", "fold", "seed", "stage", "key")}
    inputs = {f"md5.{name}": value for name, value in record.inputs.items()}
    if verdict := record.tags.get("verdict"):
        own["mlflow.note.content"] = verdict  # shown as the run's description
    return {accepted(name): str(value)[:MAX_TAG_VAL_LENGTH] for name, value in (record.tags | inputs | own).items()}


def history(path: Path) -> list[Value]:
    """history.csv: the column `epoch` is the step, blanks are skipped; a millisecond a row, as it holds no times."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("epoch")]
    first = now_ms() - len(rows)
    return [
        (name, float(cell), first + index, int(float(row["epoch"])))
        for index, row in enumerate(rows)
        for name, cell in row.items()
        if name != "epoch" and cell
    ]


def epochs(rows: list[dict[str, float]]) -> list[Value]:
    first = now_ms() - len(rows)
    return [(name, value, first + epoch, epoch) for epoch, row in enumerate(rows) for name, value in row.items()]


def accepted(name: str) -> str:
    """A name that MLflow takes: recall@5 -> recall_at_5."""
    return re.sub(r"[^\w\-. /]", "_", name.replace("@", "_at_"))[:250]


def batches(items: list[T], size: int) -> Iterator[list[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def now_ms() -> int:
    return int(time.time() * 1000)
