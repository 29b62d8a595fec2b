"""The perfusion study compared with nnU-Net v2: preprocessing, seconds per iteration, memory, and Dice after equal training.

    python3.11 -m venv ../nnunet-env
    ../nnunet-env/bin/pip install -c constraints.txt torch
    ../nnunet-env/bin/pip install -c constraints.txt --no-deps nnunetv2==2.8.1 dynamic-network-architectures==0.4.4
    ../nnunet-env/bin/pip install -c constraints.txt acvl-utils==0.2.6 batchgenerators==0.25.5 batchgeneratorsv2==0.3.6 \\
        blosc2==4.14.1 SimpleITK==2.5.7 einops graphviz imagecodecs matplotlib nibabel pandas psutil requests scikit-image \\
        scikit-learn scipy seaborn tifffile tqdm yacs   # without timm, which only nnU-Net's transformers need
    python benchmarks/perfusion.py --nnunet ../nnunet-env/bin/python

Both train the same network (`shared`, features 8, 72 x 56, batch 26) on the same phantoms of 60 people, 12 of them held out, for
the same number of iterations and with the same number of threads, one after the other. Both average predictions over the mirror
images of their training. nnU-Net runs its default trainer (perfusion_nnunet.py). `ours-plain` is our code with nnU-Net's memory
layout and norm: it shows how much of the speed comes from these two.
The exit code is 1 if ours needs more than half of nnU-Net's seconds per iteration, or if Dice may be more than 2 points lower
(95 % interval of the paired difference, people as clusters). Expected: 9 minutes on 2 cores.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

MARGIN = 0.02
SPEED = 2.0


def preprocess(options: argparse.Namespace) -> dict[str, Any]:
    from quintet.perfusion.data.prepare import prepare
    from quintet.training.hardware import peak_memory_mb

    started = time.monotonic()
    prepare(options.work / "raw", options.work / "prepared", parameters(options).perfusion)
    return {"preprocess_seconds": time.monotonic() - started, "preprocess_peak_mb": peak_memory_mb()}


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Train, and predict the held-out cases; the training part of each epoch is timed."""
    import torch

    if options.part == "ours-plain":
        from quintet.perfusion.model import networks

        networks._use_fast_norm = lambda module: None
        torch.channels_last = torch.contiguous_format
    from quintet.experiment import run_sweep_entry
    from quintet.perfusion.model import augmentation
    from quintet.perfusion.model.module import TerritoryModule
    from quintet.runs import Record

    epochs: list[float] = []
    inputs: list[float] = []
    begun = 0.0

    def begin(self: Any) -> None:
        nonlocal begun
        begun = time.monotonic()

    def timed(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            started = time.monotonic()
            result = function(*arguments)
            inputs.append(time.monotonic() - started)
            return result

        return call

    def end(self: Any) -> None:
        epochs.append(time.monotonic() - begun)

    for name, hook in (("on_train_epoch_start", begin), ("on_validation_start", end)):
        setattr(TerritoryModule, name, hook)
    for name in ("sample_offsets", "draw_params", "transform"):
        setattr(augmentation, name, timed(getattr(augmentation, name)))
    run = options.work / options.part
    shutil.rmtree(run, ignore_errors=True)  # a finished run would not be trained again
    run_sweep_entry("perfusion", parameters(options), options.work / "prepared", run, "shared", fold=0, seed=0)
    metrics = Record.load(run).metrics
    table = pd.read_csv(run / "evaluation" / "cases.csv").pivot(index="case", columns="metric", values="value")
    return {
        "iteration_seconds": [seconds / options.iterations for seconds in epochs[1:]],  # the first is warm-up
        "input_seconds": sum(inputs) / (len(epochs) * options.iterations),
        "train_peak_mb": metrics["peak_memory_mb"],
        "parameters": metrics["parameters"],
        "cases": {case: {"left": row["dice_left"], "right": row["dice_right"]} for case, row in table.iterrows()},
    }


def parameters(options: argparse.Namespace) -> Any:
    """params.yaml with the benchmark's length of training and nnU-Net's published learning rate."""
    from quintet.params import load

    params = load(Path(__file__).parents[1] / "params.yaml")
    names = ("epochs", "iterations", "features")
    changed = {name: getattr(options, name) for name in names} | {"batch_size": options.batch, "rate": 0.01}
    changed["precision"] = int(options.precision) if options.precision.isdigit() else options.precision
    if options.part != "ours":
        changed["epochs"] = min(4, options.epochs)  # enough for timing
    compute = params.compute.model_copy(update={"threads": options.threads, "device": "cpu"})
    training = params.perfusion.training.model_copy(update=changed)
    return params.model_copy(update={"perfusion": params.perfusion.model_copy(update={"training": training}), "compute": compute})


def in_own_process(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run a part of ours in a new process, so that its peak memory is its own."""
    command = [sys.executable, __file__, "--part", part, "--work", str(options.work), "--nnunet", str(options.nnunet)]
    for name in ("epochs", "iterations", "features", "batch", "threads", "subjects", "precision"):
        command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=options.work)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def nnunet(options: argparse.Namespace) -> dict[str, Any]:
    out = options.work / "nnunet.json"
    command = [str(options.nnunet), str(Path(__file__).with_name("perfusion_nnunet.py"))]
    command += ["--raw", str(options.work / "raw"), "--work", str(options.work / "nnunet"), "--out", str(out), "--fold", "0"]
    for name in ("epochs", "iterations", "features", "batch", "threads", "workers"):
        command += [f"--{name}", str(getattr(options, name))]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True, env=environment)
    return dict(json.loads(out.read_text(encoding="utf-8")))


def compare(ours: dict[str, Any], peer: dict[str, Any]) -> tuple[float, float, float, int]:
    """Mean over people of the paired Dice difference (ours - nnU-Net), its 95 % interval, and the number of people."""
    rows = [
        (case.rsplit("-v", 1)[0], np.mean(list(own.values())) - np.mean(list(peer[case].values()))) for case, own in ours.items()
    ]
    people = pd.DataFrame(rows, columns=["person", "difference"]).groupby("person")["difference"].mean()
    half = stats.t.ppf(0.975, len(people) - 1) * people.std() / np.sqrt(len(people))
    return float(people.mean()), float(people.mean() - half), float(people.mean() + half), len(people)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nnunet", type=Path, required=True, help="the python of the environment with nnunetv2")
    parser.add_argument("--part", choices=["prepare", "ours", "ours-again", "ours-plain"], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    for name, default in (("subjects", 60), ("epochs", 10), ("iterations", 50), ("features", 8), ("batch", 26), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precision", default="32", choices=["32", "bf16", "auto"], help="of ours; nnU-Net uses 32 on a CPU")
    parser.add_argument("--workers", type=int, default=2, help="for nnU-Net's augmentation; nnU-Net itself chooses 2 on 2 cores")
    options = parser.parse_args()
    if options.part:
        print(json.dumps(preprocess(options) if options.part == "prepare" else train(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        from quintet.perfusion.synthetic import synthesize

        options.work = Path(folder)
        synthesize(options.work / "raw", subjects=options.subjects, seed=2, workers=options.threads)
        ours = in_own_process("prepare", options)
        # nnU-Net gets the same folds
        (options.work / "raw" / "splits_final.json").write_text((options.work / "prepared" / "splits_final.json").read_text())
        plain = in_own_process("ours-plain", options)
        ours |= in_own_process("ours", options)
        peer = nnunet(options)
        for side, part in (
            (plain, "ours-plain"),
            (ours, "ours-again"),
        ):  # before and after nnU-Net: evens out the machine's fluctuations
            side["iteration_seconds"] += in_own_process(part, options)["iteration_seconds"]
            side["seconds_per_iteration"] = statistics.median(side["iteration_seconds"])
    speed = peer["seconds_per_iteration"] / ours["seconds_per_iteration"]
    difference, low, high, people = compare(ours["cases"], peer["cases"])
    print(
        f"{options.epochs} x {options.iterations} iterations, features {options.features}, batch {options.batch}, "
        f"{options.threads} threads, precision {options.precision}; nnU-Net {peer['versions']['nnunetv2']} in float32 with "
        f"{options.workers} workers\n"
    )
    names = (
        "preprocess_seconds",
        "preprocess_peak_mb",
        "seconds_per_iteration",
        "sustained_seconds_per_iteration",
        "train_peak_mb",
        "parameters",
    )
    rows = {name: [ours.get(name), peer.get(name)] for name in names}
    rows["Dice"] = [np.mean([list(r.values()) for r in side["cases"].values()]) for side in (ours, peer)]
    print(pd.DataFrame(rows, index=["ours", "nnU-Net"]).T.to_string(float_format=lambda v: f"{v:.4g}", na_rep=""))
    layout, rest = (a["seconds_per_iteration"] / b["seconds_per_iteration"] for a, b in ((plain, ours), (peer, plain)))
    print(
        f"\nAn iteration is {speed:.2f}x as fast. Memory layout and norm contribute {layout:.2f}x, "
        f"the input path and its contention for the cores {rest:.2f}x "
        f"(our augmentation: {1e3 * ours['input_seconds']:.0f} ms per batch)."
    )
    print(f"Dice, ours - nnU-Net: {100 * difference:+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}], {people} people held out")
    raise SystemExit(0 if speed >= SPEED and low > -MARGIN else 1)


if __name__ == "__main__":
    main()
