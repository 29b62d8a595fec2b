"""The pipeline: concurrent stages compared with `dvc repro`, and growth with the number of patients.

    python benchmarks/pipeline.py [--part parallel|growth] [--jobs 2]

parallel: the perfusion sweep (14 runs) in two clones of the last commit, once by `dvc repro`, once by `quintet repro --jobs N`,
with one thread per run in both; wall times, their ratio, and whether the outputs are the same. growth: perfusion's prepare and
one epoch on 1, 2, 4 and 8 times the default number of phantoms, with proportionally more batches per epoch (every case is seen
equally often); seconds and peak memory above the imports, each size in its own process. Expected: about 13 and 3 minutes on 2
cores."""

import argparse
import filecmp
import importlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pandas as pd
from turns import take_turns

from quintet.files import repository_root

COMPARED_FILES = ("model.pt", "history.csv", "cases.csv")
FACTORS = (1, 2, 4, 8)


def parallel(jobs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        serial, concurrent = Path(folder, "serial"), Path(folder, "concurrent")
        subprocess.run(["git", "clone", "-q", str(repository_root()), str(serial)], check=True)
        _run("dvc repro perfusion_prepare", serial)
        shutil.copytree(serial, concurrent, symlinks=True)
        serial_s = _run("dvc repro perfusion_sweep", serial, QUINTET_THREADS="1")
        concurrent_s = _run(f"quintet repro --jobs {jobs} --threads 1 perfusion_sweep", concurrent)
        files = [path.relative_to(serial) for path in (serial / "runs").rglob("*") if path.name in COMPARED_FILES]
        same = sum(filecmp.cmp(serial / file, concurrent / file, shallow=False) for file in files)
    speedup = serial_s / concurrent_s
    print(f"dvc repro {serial_s:.1f} s, quintet repro --jobs {jobs} {concurrent_s:.1f} s: {speedup:.2f} times as fast")
    print(f"{same} of {len(files)} files (weights, histories, scores by case) are the same")


def _run(command: str, root: Path, **more: str) -> float:
    started = time.perf_counter()
    subprocess.run(command, shell=True, cwd=root, env=os.environ | more, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def growth(factor: int, folder: Path) -> dict[str, float]:
    """Draw phantoms, prepare them and train one epoch; seconds, and peaks above the imports. The peak of prepare is read first,
    because a process's peak never falls."""
    from quintet.experiment import train_selected
    from quintet.params import load
    from quintet.perfusion.data.prepare import prepare
    from quintet.perfusion.synthetic import synthesize
    from quintet.training.hardware import peak_memory_mb

    for module in ("evaluation.inference", "model.module"):  # the peaks must not include their memory
        importlib.import_module(f"quintet.perfusion.{module}")
    params = load(repository_root() / "params.yaml")
    perfusion = params.perfusion
    subjects = factor * perfusion.synthetic.subjects
    training = perfusion.training.model_copy(update={"epochs": 1, "iterations": factor * perfusion.training.iterations})
    params = params.model_copy(update={"perfusion": perfusion.model_copy(update={"training": training})})
    os.chdir(folder)
    synthesize(Path("raw"), subjects=subjects, seed=1, workers=2)
    before = peak_memory_mb()
    started = time.perf_counter()
    prepared, _ = prepare(Path("raw"), Path("data"), params.perfusion)
    prepared_at, peak = time.perf_counter(), peak_memory_mb()
    train_selected("perfusion", params, Path("data"), Path("run"))
    return {
        "subjects": subjects,
        "cases": len(prepared.table),
        "prepare_s": prepared_at - started,
        "epoch_s": time.perf_counter() - prepared_at,
        "arrays_mib": (prepared.images.nbytes + prepared.masks.nbytes) / 2**20,
        "prepare_above_mib": peak - before,
        "training_above_mib": peak_memory_mb() - before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["parallel", "growth"])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(growth(int(options.variant), Path(folder))))
        return
    if options.part != "growth":
        parallel(options.jobs)
    if options.part != "parallel":
        sizes = take_turns(__file__, [str(factor) for factor in FACTORS], {}, rounds=1)
        print(pd.DataFrame(sizes.values()).round(1).to_string(index=False))


if __name__ == "__main__":
    main()
