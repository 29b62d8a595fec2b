"""Train and evaluate one configuration of the sweep with one seed.

python stages/ct_sweep.py --config adaptive-micro-f1 --seed 0 --data data/processed/ct
  --out runs/ct/sweep/adaptive-micro-f1/seed0
"""

from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, config: str, seed: int, data: Path, out: Path) -> str:
    from quintet.ct.study import sweep_cell
    from quintet.tracking import upload

    reached = sweep_cell(out, data, config, seed, params.ct, params.compute)
    upload(out)
    return f"{config}, seed {seed}: mAP@5 {reached['map_at_5']:.3f}, in {out}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.ct.module")
