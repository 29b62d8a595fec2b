"""Train and evaluate one configuration of the sweep with one seed.

python stages/ct_sweep.py --config adaptive-micro-f1 --seed 0 --data data/processed/ct
  --out runs/ct/sweep/adaptive-micro-f1/seed0
"""

from pathlib import Path

from quintet.experiment import run_sweep_entry
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, config: str, seed: int, data: Path, out: Path) -> str:
    metrics = run_sweep_entry("ct", params, data, out, config, seed=seed)
    return f"{config}, seed {seed}: NDCG@10 {metrics['ndcg_at_10']:.3f}, in {out}"


if __name__ == "__main__":
    run_stage(main, imports=("quintet.ct.model.module", "quintet.ct.evaluation.inference"))
