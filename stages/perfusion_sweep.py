"""Train and evaluate one configuration of the sweep on one fold with one seed.

python stages/perfusion_sweep.py --config shared --fold 0 --seed 0 --data data/processed/perfusion
  --out runs/perfusion/sweep/shared/fold0-seed0
"""

from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, config: str, fold: int, seed: int, data: Path, out: Path) -> str:
    from quintet.perfusion.study import sweep_cell
    from quintet.tracking import upload

    reached = sweep_cell(out, data, config, fold, seed, params.perfusion, params.compute)
    upload(out)
    return f"{config}, fold {fold}, seed {seed}: Dice {reached['dice']:.4f}, in {out}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.perfusion.module")
