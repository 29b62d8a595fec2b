"""Training at the published scale of all five studies: seconds per iteration, peak memory, and the share of waiting for input.

python benchmarks/gpu.py [--scale published|smoke] [--study NAME ...] [--compile MODE] [--out gpu.csv]

Draws a few phantoms per study, prepares them with the published parameters (`quintet preset paper`, random weights), and trains
the selected configuration for some iterations, each study in a process of its own. `smoke`: the same at a tiny scale, to see
that it runs. benchmarks/perfusion_nnunet.py trains nnU-Net v2, where it is installed, on the same kind of data. Expected: at most
10 minutes on one GPU; without a GPU the published scale is refused.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from lightning.pytorch.callbacks import Callback

from quintet import experiment, params
from quintet.params import StudyName
from quintet.presets import apply_preset
from quintet.training import fit

ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 3  # iterations that are not counted
FEW: dict[str, dict[str, Any]] = {  # of the published scale: few cases and epochs, no downloads
    "landmarks": {"synthetic": {"images": 300}, "epochs": 2, "training": {"weights": "none"}},
    "perfusion": {"synthetic": {"subjects": 20}, "training": {"epochs": 1, "iterations": 40}},
    "breakhis": {"synthetic": {"patients": 40, "width": 224}, "training": {"weights": "none", "epochs": 3}},
    "ct": {"synthetic": {"scans": 60, "matrix": 160}, "training": {"weights": "none", "epochs": 2}},
    "fusion": {"synthetic": {"patients": 60, "second_hospital": {"patients": 0}}, "training": {"epochs": 2, "accumulate": 1}},
}
PREPARE = {"fusion": ["synthesize", "segment", "prepare"]}  # the other studies have no masks


class Timer(Callback):
    """Seconds of each iteration, and those of them in which the network waited for its batch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.waited: list[float] = []
        self.ended = self.started = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        self.ended = time.perf_counter()  # validation is between two epochs

    def on_train_batch_start(self, *_: Any) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.waited.append(self.started - self.ended)
        self.seconds.append(now - self.ended)
        self.ended = now


def measure(study: str) -> dict[str, Any]:
    """Draw, prepare and train in the current folder, which holds params.yaml."""
    loaded = params.load(Path("params.yaml"))
    raw, data = Path(loaded.of(study).raw), Path("data/processed") / study
    for name in PREPARE.get(study, ["synthesize", "prepare"]):
        own = {
            "synthesize": ["--out", raw],
            "segment": ["--raw", raw, "--out", "masks"],
            "prepare": ["--raw", raw, "--out", data, "--page", "page.html", *(["--masks", "masks"] if study == "fusion" else [])],
        }[name]
        command = [sys.executable, str(ROOT / "stages" / f"{study}_{name}.py"), *map(str, own)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    timer, callbacks = Timer(), fit._callbacks

    def with_timer(*args: Any, **options: Any) -> Any:
        found, history = callbacks(*args, **options)
        return [*found, timer], history

    fit._callbacks = with_timer
    record = experiment.train_selected(study, loaded, data, Path("run"))
    counted = slice(min(WARM_UP, len(timer.seconds) - 1), None)
    seconds, waited = np.array(timer.seconds[counted]), np.array(timer.waited[counted])
    gpu = record.metrics.get("peak_gpu_memory_mb")
    return {
        "study": study,
        "iterations": len(seconds),
        "ms per iteration": round(1000 * float(np.median(seconds)), 1),
        "waiting for input": f"{waited.sum() / seconds.sum():.0%}",
        "peak GPU memory, GB": "" if gpu is None else round(gpu / 1024, 2),
        "peak memory, GB": round(record.metrics["peak_memory_mb"] / 1024, 2),
        "precision": record.tags["precision"],
    }


def set_up(folder: Path, scale: str, study: str, compiled: str) -> None:
    """params.yaml and what the stages need beside it."""
    shutil.copy(ROOT / "params.yaml", folder)
    shutil.copy(ROOT / "dvc.yaml", folder)
    shutil.copytree(ROOT / "presets", folder / "presets")
    apply_preset(folder, "paper" if scale == "published" else "smoke", study)
    values = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    if scale == "published":
        merge(values[study], FEW[study])
    values["compute"]["compile"] = compiled
    (folder / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")


def merge(values: dict[str, Any], changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        if isinstance(value, dict):
            merge(values[name], value)
        else:
            values[name] = value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=["published", "smoke"], default="published")
    parser.add_argument("--study", nargs="+", choices=[s.value for s in StudyName], default=[s.value for s in StudyName])
    parser.add_argument("--compile", default="none", help="compute.compile (landmarks, perfusion)")
    parser.add_argument("--out", type=Path, default=Path("gpu.csv"))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # measures in the current folder
    options = parser.parse_args()
    if options.inside:
        pd.DataFrame([measure(options.study[0])]).to_csv(options.out, index=False)
        return
    if options.scale == "published" and not torch.cuda.is_available():
        raise SystemExit("no GPU here: the published scale would take hours on a CPU; --scale smoke shows that everything runs")
    rows = []
    for study in options.study:
        with tempfile.TemporaryDirectory() as folder:
            set_up(Path(folder), options.scale, study, options.compile)
            row = Path(folder) / "row.csv"
            command = [sys.executable, __file__, "--inside", "--study", study, "--out", str(row)]
            done = subprocess.run(
                command, cwd=folder, env=os.environ | {"MLFLOW_TRACKING_URI": ""}, capture_output=True, text=True
            )
            if done.returncode:
                print(f"{study} failed: {done.stderr.strip().splitlines()[-1]}", flush=True)
                continue
            rows.append(pd.read_csv(row))
            print(rows[-1].to_string(index=False), flush=True)
    if not rows:
        raise SystemExit("nothing was measured")
    table = pd.concat(rows)
    table.to_csv(options.out, index=False)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"\n{name}, torch {torch.__version__}\n{table.to_string(index=False)}")


if __name__ == "__main__":
    main()
