"""Evaluate the baselines on the held-out people of every fold of the sweep.

python stages/perfusion_baselines.py --data data/processed/perfusion --out runs/perfusion/baselines
"""

from pathlib import Path

from quintet.experiment import run_baselines
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, data: Path, out: Path) -> str:
    metrics = run_baselines("perfusion", params, data, out)
    return ", ".join(f"{name}: Dice {scores['dice']:.4f}" for name, scores in metrics.items()) + f" in {out}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.perfusion.baselines")
