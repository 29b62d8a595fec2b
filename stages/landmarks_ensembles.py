"""Evaluate the mean predictions of trained runs.

python stages/landmarks_ensembles.py --data data/processed/landmarks --sweep runs/landmarks/sweep --out runs/landmarks/ensembles
"""

from pathlib import Path

from quintet.experiment import run_ensembles
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, data: Path, sweep: Path, out: Path) -> str:
    metrics = run_ensembles("landmarks", params, data, sweep, out)
    return ", ".join(f"{name} {scores['error_px']:.2f} px" for name, scores in metrics.items()) + f" in {out}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.landmarks.evaluation.inference")
