"""Convert a run folder to MLflow's tags, metric values (with time and step) and valid names."""

import csv
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from quintet.runs import Record

T = TypeVar("T")
MetricValue = tuple[str, float, int, int]  # name, value, time in ms, step


def tags_of(record: Record) -> dict[str, str]:
    """A record's tags, with the MD5 of each input as `md5.INPUT`; the verdict of a ranking becomes the run's description."""
    from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

    identity = {name: str(getattr(record, name)) for name in ("study", "config", "fold", "seed", "stage", "key")}
    inputs = {f"md5.{name}": value for name, value in record.inputs.items()}
    if verdict := record.tags.get("verdict"):
        identity["mlflow.note.content"] = verdict
    return {valid_name(name): str(value)[:MAX_TAG_VAL_LENGTH] for name, value in (record.tags | inputs | identity).items()}


def read_history(path: Path) -> list[MetricValue]:
    """The values of a history.csv: the column `epoch` is the step, and blank cells are skipped. The file has no times, so the
    rows' times are one millisecond apart."""
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


def epoch_metrics(rows: list[dict[str, float]]) -> list[MetricValue]:
    """The values of one mapping per epoch."""
    first = now_ms() - len(rows)
    return [(name, value, first + epoch, epoch) for epoch, row in enumerate(rows) for name, value in row.items()]


def valid_name(name: str) -> str:
    """A name that MLflow accepts: recall@5 -> recall_at_5."""
    return re.sub(r"[^\w\-. /]", "_", name.replace("@", "_at_"))[:250]


def batches(items: list[T], size: int) -> Iterator[list[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def now_ms() -> int:
    return int(time.time() * 1000)
