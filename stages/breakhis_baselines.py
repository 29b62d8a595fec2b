"""Evaluate the baselines on each fold of the sweep.

python stages/breakhis_baselines.py --data data/processed/breakhis --out runs/breakhis/baselines
"""

from pathlib import Path

from quintet.experiment import run_baselines
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, data: Path, out: Path) -> str:
    metrics = run_baselines("breakhis", params, data, out)
    return ", ".join(f"{name} {scores['brier']:.3f}" for name, scores in metrics.items()) + f" (Brier score) in {out}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.breakhis.baselines")
