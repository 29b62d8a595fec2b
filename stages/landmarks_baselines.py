"""Fit and evaluate the baselines.

python stages/landmarks_baselines.py --data data/processed/landmarks --out runs/landmarks/baselines
"""

from pathlib import Path

from quintet.experiment import run_baselines
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, data: Path, out: Path) -> str:
    metrics = run_baselines("landmarks", params, data, out)
    return ", ".join(f"{name} {scores['error_px']:.2f} px" for name, scores in metrics.items()) + f" in {out}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.landmarks.baselines")
