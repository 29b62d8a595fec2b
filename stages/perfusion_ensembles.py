"""Evaluate the mean predictions of trained runs.

python stages/perfusion_ensembles.py --data data/processed/perfusion --sweep runs/perfusion/sweep --out runs/perfusion/ensembles
"""

from pathlib import Path

from quintet.experiment import run_ensembles
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, data: Path, sweep: Path, out: Path) -> str:
    metrics = run_ensembles("perfusion", params, data, sweep, out)
    return ", ".join(f"{name}: Dice {scores['dice']:.4f}" for name, scores in metrics.items()) + f" in {out}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.perfusion.evaluation.inference")
