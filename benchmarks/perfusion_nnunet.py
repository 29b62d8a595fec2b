"""Measure nnU-Net v2 on one fold of the perfusion data: preprocessing, training iterations, memory, Dice of held-out cases.

    python benchmarks/perfusion_nnunet.py --raw RAW --work WORK --fold 0 --epochs 20 --iterations 100 --features 8 --batch 26 \\
        --patch 72 56 --threads 2 --workers 2 --out result.json

It runs in a separate environment with nnunetv2 and the CPU build of torch (benchmarks/perfusion.py explains how to create it).
RAW is a raw nnU-Net v2 folder with region labels and splits_final.json. All output is below WORK; folders of an earlier run there
are replaced. Only patch size, batch size and network width of the "2d" plans are changed; strides and number of stages follow
nnU-Net's own rule for that patch. The trainer is nnUNetTrainer with its own augmentation, loss, sampling, optimiser and schedule:
only the number of epochs and iterations is set, and some methods are timed. Initial weights follow --seed. With --workers above 0
the augmentation processes draw their own seeds, as nnU-Net does by default; with 0, --seed determines them too.

Entries of result.json that need an explanation:
    seconds_per_iteration  wall time of an epoch's training part / iterations, including data; median without the first epoch.
                           It is the sum of step_seconds (forward, backward, optimiser) and wait_seconds (for data)
    sustained_seconds_per_iteration  the same wall time / batches produced in it. Between epochs, outside the measured time, the
                           workers fill a queue of about 12 batches; batches taken from it are not counted here. With few
                           iterations this is the fair number; with many, the two agree
    *_peak_mb              proportional set size (private pages and a share of the shared ones) of this process and all its
                           children, the highest of samples every 0.2 to 1 s; it includes the imported libraries
    train_seconds          all of run_training: start of the workers, epochs with their short validation, plots, checkpoints
    validate_seconds       perform_actual_validation with its defaults: sliding window, 4-fold mirroring, written files
    cases                  3D Dice of each region (probability at least 0.5 on the file's own grid); 1 if both are empty
"""

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import psutil
import torch

NUMBER, DATASET = 501, "Dataset501_Perfusion"
PACKAGES = ("nnunetv2", "dynamic_network_architectures", "batchgenerators", "batchgeneratorsv2", "torch", "numpy", "SimpleITK")


class ResourceMonitor:
    """Seconds and peak memory (MB, this process and its children) of a with block."""

    def __init__(self) -> None:
        self.seconds = self.peak_mb = 0.0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.sample, daemon=True)

    def sample(self) -> None:
        this, pause = psutil.Process(), 0.0
        while not self.stop.wait(pause):
            started, total = time.thread_time(), 0
            for process in [this, *this.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:  # the process has just ended
                    continue
            self.peak_mb = max(self.peak_mb, total / 2**20)
            pause = min(1.0, max(0.2, 30 * (time.thread_time() - started)))  # sampling must not take much of a core

    def __enter__(self) -> Self:
        self.started = time.perf_counter()
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.seconds = time.perf_counter() - self.started
        self.stop.set()
        self.thread.join()


class EpochTimer:
    """Times a trainer's methods without changing what they do."""

    def __init__(self, trainer: Any) -> None:
        self.epochs: list[dict[str, float]] = []
        self.trainer, self.step_seconds, self.started, self.stock = trainer, 0.0, 0.0, 0
        self.epoch_start, self.epoch_end, self.step = (
            trainer.on_train_epoch_start,
            trainer.on_train_epoch_end,
            trainer.train_step,
        )
        trainer.on_train_epoch_start, trainer.on_train_epoch_end, trainer.train_step = self.begin, self.end, self.timed_step

    def ready(self) -> int:
        """Batches in the two queues between the augmentation workers and the trainer."""
        queues = [getattr(self.trainer.dataloader_train, name, None) for name in ("_queue", "results_loop_queue")]
        return sum(queue.qsize() for queue in queues if queue is not None)

    def begin(self) -> None:
        self.epoch_start()
        self.step_seconds, self.stock, self.started = 0.0, self.ready(), time.perf_counter()

    def timed_step(self, batch: Any) -> Any:
        started = time.perf_counter()
        done = self.step(batch)
        self.step_seconds += time.perf_counter() - started
        return done

    def end(self, outputs: Any) -> None:
        wall, count = time.perf_counter() - self.started, len(outputs)
        produced = max(1, min(count, count - self.stock + self.ready()))
        self.epochs.append(
            {
                "seconds_per_iteration": wall / count,
                "step_seconds": self.step_seconds / count,
                "wait_seconds": (wall - self.step_seconds) / count,
                "sustained_seconds_per_iteration": wall / produced,
            }
        )
        self.epoch_end(outputs)

    def medians(self) -> dict[str, float]:
        counted = self.epochs[1:] or self.epochs
        return {name: statistics.median(epoch[name] for epoch in counted) for name in counted[0]}


def make_folders(options: argparse.Namespace) -> Path:
    """Create nnU-Net's three folders below WORK, with RAW linked into the first. Must run before any import of nnunetv2."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[name] = str(options.work / name)
        shutil.rmtree(options.work / name / DATASET, ignore_errors=True)
        (options.work / name).mkdir(parents=True, exist_ok=True)
    # the first: processes for preprocessing and export, 8 by default; the second: the planner fails with 0
    os.environ.update(nnUNet_def_n_proc=str(options.threads), nnUNet_n_proc_DA=str(options.workers or 1), nnUNet_compile="f")
    raw: Path = options.work / "nnUNet_raw" / DATASET
    raw.mkdir()
    for name in ("imagesTr", "labelsTr"):
        (raw / name).symlink_to(options.raw / name, target_is_directory=True)
    shutil.copyfile(options.raw / "splits_final.json", raw / "splits_final.json")
    description = json.loads((options.raw / "dataset.json").read_text())
    description |= {"file_ending": ".nii.gz", "numTraining": len(list((options.raw / "labelsTr").glob("*.nii.gz")))}
    (raw / "dataset.json").write_text(json.dumps(description, indent=2))
    return raw


def change_plans(file: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Set patch, batch and width of configuration 2d; returns what nnU-Net planned and what is used."""
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    plans = json.loads(file.read_text())
    plan = plans["configurations"]["2d"]
    network = plan["architecture"]["arch_kwargs"]

    def summary() -> dict[str, Any]:
        return {
            "patch_size": plan["patch_size"],
            "batch_size": plan["batch_size"],
            "strides": network["strides"],
            "features_per_stage": network["features_per_stage"],
            "spacing": plan["spacing"],
        }

    planned = summary()
    if planned["patch_size"] != options.patch and planned["patch_size"] == options.patch[::-1]:
        sys.exit(f"--patch {options.patch}: nnU-Net planned {planned['patch_size']}; give rows first, then columns")
    _, strides, kernels, patch, _ = get_pool_and_conv_props(plan["spacing"], options.patch, 4, 999999)
    if list(patch) != options.patch:
        sys.exit(f"--patch {options.patch}: the nearest patch that this network can process is {[int(side) for side in patch]}")
    stages = len(strides)
    plan |= {"patch_size": options.patch, "batch_size": options.batch}
    network |= {
        "n_stages": stages,
        "strides": strides,
        "kernel_sizes": kernels,
        "features_per_stage": [min(512, options.features * 2**stage) for stage in range(stages)],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }
    file.write_text(json.dumps(plans, indent=2))
    return {"planned": planned, "used": summary()}


def held_out_dice(folder: Path, raw: Path, names: list[str]) -> dict[str, dict[str, float]]:
    """Dice of every region of every case, from the probabilities `[region, z, y, x]` that nnU-Net saved."""
    import SimpleITK

    labels = json.loads((raw / "dataset.json").read_text())["labels"]
    regions = {name: values for name, values in labels.items() if name != "background"}  # in the order of the channels
    cases: dict[str, dict[str, float]] = {}
    for name in names:
        truth = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(raw / "labelsTr" / f"{name}.nii.gz")))
        with np.load(folder / f"{name}.npz") as saved:
            found = saved["probabilities"] >= 0.5
        if found.shape != (len(regions), *truth.shape):
            sys.exit(f"{name}: probabilities of shape {found.shape} are not on the label's grid {truth.shape}")
        cases[name] = {}
        for predicted, (region, values) in zip(found, regions.items(), strict=True):
            true = np.isin(truth, values)
            both = int(predicted.sum() + true.sum())
            cases[name][region] = float(2 * (predicted & true).sum() / both) if both else 1.0
    return cases


def measure(options: argparse.Namespace) -> dict[str, Any]:
    raw = make_folders(options)
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    processes, preprocessed = options.threads, options.work / "nnUNet_preprocessed" / DATASET
    torch.set_num_threads(options.threads)
    with ResourceMonitor() as preparing:
        api.extract_fingerprint_dataset(NUMBER, num_processes=processes, verbose=False, show_progress_bar=False)
        _, name = api.plan_experiment_dataset(NUMBER)
        plan = change_plans(preprocessed / f"{name}.json", options)
        api.preprocess_dataset(NUMBER, name, ["2d"], [processes], show_progress_bar=False)

    os.environ.update(nnUNet_n_proc_DA=str(options.workers))
    random.seed(options.seed)
    np.random.seed(options.seed)
    torch.manual_seed(options.seed)
    plans = json.loads((preprocessed / f"{name}.json").read_text()) | {"continue_training": False}
    description = json.loads((preprocessed / "dataset.json").read_text())
    trainer = nnUNetTrainer(plans, "2d", options.fold, description, torch.device("cpu"))
    if not trainer.label_manager.has_regions:
        sys.exit(f"{options.raw}/dataset.json: labels must be regions, such as left: [1, 3]")
    trainer.num_epochs, trainer.num_iterations_per_epoch = options.epochs, options.iterations
    trainer.num_val_iterations_per_epoch = options.val_iterations
    timer = EpochTimer(trainer)
    with ResourceMonitor() as training:
        trainer.run_training()
    with ResourceMonitor() as validating:
        trainer.perform_actual_validation(save_probabilities=True)

    held_out = json.loads((raw / "splits_final.json").read_text())[options.fold]["val"]
    cases = held_out_dice(Path(trainer.output_folder) / "validation", raw, held_out)
    return timer.medians() | {
        "preprocess_seconds": preparing.seconds,
        "preprocess_peak_mb": preparing.peak_mb,
        "train_seconds": training.seconds,
        "train_peak_mb": training.peak_mb,
        "validate_seconds": validating.seconds,
        "validate_peak_mb": validating.peak_mb,
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
        "versions": {package: version(package) for package in PACKAGES} | {"python": sys.version.split()[0]},
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
        "plan": plan,
        "epochs": timer.epochs,
        "cases": cases,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    for name, default in {
        "fold": 0,
        "epochs": 20,
        "iterations": 100,
        "val-iterations": 2,
        "features": 8,
        "batch": 26,
        "threads": 2,
        "workers": 2,
        "seed": 0,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--patch", type=int, nargs=2, default=[72, 56], help="rows columns (y x)")
    options = parser.parse_args()
    options.raw, options.work = options.raw.resolve(), options.work.resolve()
    folds = len(json.loads((options.raw / "splits_final.json").read_text()))
    if not 0 <= options.fold < folds:  # nnU-Net would draw a random split
        sys.exit(f"--fold {options.fold}: splits_final.json has the folds 0 to {folds - 1}")
    result = json.dumps(measure(options), indent=2)
    options.out.write_text(result + "\n")
    print(result)


if __name__ == "__main__":
    main()
