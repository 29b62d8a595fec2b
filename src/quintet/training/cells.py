"""A cell of a sweep: one configuration on one fold with one seed, trained and evaluated in one process."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from quintet.errors import InputError
from quintet.runs import Record
from quintet.training.fit import delete_resume_checkpoints

Config = TypeVar("Config")


def cell(
    out: Path,
    configs: Mapping[str, Config],
    config: str,
    train: Callable[[Path, Config], Record],
    evaluate: Callable[[Path], dict[str, float]],
) -> dict[str, float]:
    """Train into and evaluate a folder beside `out`, which takes its name when both are done; returns the metrics."""
    if config not in configs:
        raise InputError(f"--config {config}: no such configuration; there are {', '.join(configs)}")
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    record = train(part, configs[config])
    metrics = evaluate(part)
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)
    delete_resume_checkpoints(record)
    return metrics
