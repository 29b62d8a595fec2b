"""Train and evaluate one configuration of the sweep on one fold with one seed.

python stages/breakhis_sweep.py --config mmnet --fold 0 --seed 0 --data data/processed/breakhis
  --out runs/breakhis/sweep/mmnet/fold0-seed0
"""

from pathlib import Path

from quintet.experiment import run_sweep_entry
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, config: str, fold: int, seed: int, data: Path, out: Path) -> str:
    metrics = run_sweep_entry("breakhis", params, data, out, config, fold=fold, seed=seed)
    return f"{config}, fold {fold}, seed {seed}: balanced accuracy {metrics['balanced_accuracy']:.3f}, in {out}"


if __name__ == "__main__":
    run_stage(main, imports=("quintet.breakhis.model.module", "quintet.breakhis.evaluation.run"))
