"""Variants of a benchmark take turns, each in a process of its own: peak memory and warm-up are its own, and a machine whose
speed drifts is fair to all."""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping

Figures = dict[str, float]


def take_turns(script: str, variants: Iterable[str], options: Mapping[str, object], *, rounds: int) -> dict[str, Figures]:
    """Call `script --variant NAME --key value ...`, whose last line of output is a JSON object of figures; their medians."""
    found: dict[str, list[Figures]] = {name: [] for name in variants}
    arguments = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    for _ in range(rounds):
        for name, rows in found.items():
            command = [sys.executable, script, "--variant", name, *arguments]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr.strip()}")
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    return {name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in found.items()}
