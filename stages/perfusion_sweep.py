"""Train and evaluate one configuration of the sweep on one fold with one seed.

python stages/perfusion_sweep.py --config shared --fold 0 --seed 0 --data data/processed/perfusion
  --out runs/perfusion/sweep/shared/fold0-seed0
"""

from pathlib import Path

from quintet.experiment import run_sweep_entry
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, config: str, fold: int, seed: int, data: Path, out: Path) -> str:
    metrics = run_sweep_entry("perfusion", params, data, out, config, fold=fold, seed=seed)
    return f"{config}, fold {fold}, seed {seed}: Dice {metrics['dice']:.4f}, in {out}"


if __name__ == "__main__":
    run_stage(main, imports=("quintet.perfusion.model.module", "quintet.perfusion.evaluation.inference"))
