"""A cell of a sweep: one configuration on one fold with one seed, trained and evaluated in one process."""

import shutil
from collections.abc import Callable
from pathlib import Path

from quintet.runs import Record
from quintet.training.fit import forget


def cell(out: Path, train: Callable[[Path], Record], evaluate: Callable[[Path], dict[str, float]]) -> dict[str, float]:
    """Train into and evaluate a folder beside `out`, which takes its name when both are done; returns the metrics."""
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    record = train(part)
    metrics = evaluate(part)
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)
    forget(record)
    return metrics
