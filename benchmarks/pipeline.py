"""The pipeline: stages side by side against `dvc repro`, and growth with the number of patients.

    python benchmarks/pipeline.py [--part parallel|growth] [--jobs 2]

parallel: the perfusion sweep (14 cells) in two clones of this commit, once by `dvc repro`, once by `quintet repro --jobs N`, one
thread a cell in both; wall times, their ratio, and whether the outputs are the same. growth: perfusion's prepare and one epoch
over 1, 2, 4 and 8 times the shipped number of phantoms, batches an epoch growing along (every case is seen equally often);
seconds and peak memory above the imports, each size in a process of its own. Expected: about 13 and 3 minutes on 2 cores."""

import argparse
import filecmp
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

SAME = ("model.pt", "history.csv", "cases.csv")
FACTORS = (1, 2, 4, 8)


def parallel(jobs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        serial, side_by_side = Path(folder, "serial"), Path(folder, "parallel")
        subprocess.run(["git", "clone", "-q", str(repository_root()), str(serial)], check=True)
        _run("dvc repro perfusion_prepare", serial)
        shutil.copytree(serial, side_by_side, symlinks=True)
        alone = _run("dvc repro perfusion_sweep", serial, QUINTET_THREADS="1")
        together = _run(f"quintet repro --jobs {jobs} --threads 1 perfusion_sweep", side_by_side)
        files = [path.relative_to(serial) for path in (serial / "runs").rglob("*") if path.name in SAME]
        same = sum(filecmp.cmp(serial / file, side_by_side / file, shallow=False) for file in files)
    print(f"dvc repro {alone:.1f} s, quintet repro --jobs {jobs} {together:.1f} s: {alone / together:.2f} times as fast")
    print(f"{same} of {len(files)} files (weights, histories, scores by case) are the same")


def _run(command: str, root: Path, **more: str) -> float:
    started = time.perf_counter()
    subprocess.run(command, shell=True, cwd=root, env=os.environ | more, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def growth(factor: int, folder: Path) -> dict[str, float]:
    """Draw, prepare, train an epoch; seconds, and peaks above the imports. Prepare first: the peak only grows."""
    from quintet.params import load
    from quintet.perfusion import inference, module  # noqa: F401
    from quintet.perfusion.data import prepare
    from quintet.perfusion.study import train_run
    from quintet.perfusion.synthetic import synthesize
    from quintet.training.hardware import peak_memory_mb

    params = load(repository_root() / "params.yaml")
    p = params.perfusion
    subjects = factor * p.synthetic.subjects
    p = p.model_copy(update={"epochs": 1, "iterations": factor * p.iterations})
    os.chdir(folder)
    synthesize(Path("raw"), subjects=subjects, seed=1, workers=2)
    before = peak_memory_mb()
    began = time.perf_counter()
    prepared = prepare(Path("raw"), Path("data"), p)
    done, peak = time.perf_counter(), peak_memory_mb()
    train_run(Path("run"), Path("data"), p, p, params.compute, stage="perfusion_train", config="selected", fold=0, seed=0)
    return {
        "subjects": subjects,
        "cases": len(prepared.cases),
        "prepare_s": done - began,
        "epoch_s": time.perf_counter() - done,
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
        found = take_turns(__file__, [str(factor) for factor in FACTORS], {}, rounds=1)
        print(pd.DataFrame(found.values()).round(1).to_string(index=False))


if __name__ == "__main__":
    main()
