"""Run the variants of a benchmark in turns, each in its own process, so that each measures its own peak memory and warm-up and
a machine whose speed drifts affects all of them equally."""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping

Measurements = dict[str, float]


def take_turns(script: str, variants: Iterable[str], options: Mapping[str, object], *, rounds: int) -> dict[str, Measurements]:
    """Call `script --variant NAME --key value ...`, which prints a JSON object of numbers last; returns their medians."""
    results: dict[str, list[Measurements]] = {name: [] for name in variants}
    arguments = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    for _ in range(rounds):
        for name, rows in results.items():
            command = [sys.executable, script, "--variant", name, *arguments]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr.strip()}")
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    return {name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in results.items()}
