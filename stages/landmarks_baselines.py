"""Fit and evaluate the baselines.

python stages/landmarks_baselines.py --data data/processed/landmarks --out runs/landmarks/baselines
"""

from pathlib import Path

from quintet.files import atomic_folder
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, data: Path, out: Path) -> str:
    from quintet.landmarks.study import baseline_runs
    from quintet.tracking import upload

    with atomic_folder(out) as folder:
        metrics = baseline_runs(folder, data, params.landmarks)
    for name in metrics:
        upload(out / name / "seed0")
    return ", ".join(f"{name} {m['error_px']:.2f} px" for name, m in metrics.items()) + f" in {out}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.landmarks.study")
