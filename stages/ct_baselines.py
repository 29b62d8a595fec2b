"""Evaluate the baselines, the oracle and any external embeddings (ct.external).

python stages/ct_baselines.py --data data/processed/ct --out runs/ct/baselines
"""

from pathlib import Path

from quintet.experiment import run_baselines
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, data: Path, out: Path) -> str:
    metrics = run_baselines("ct", params, data, out)
    return ", ".join(f"{name} {scores['ndcg_at_10']:.3f}" for name, scores in metrics.items()) + f" (NDCG@10) in {out}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.ct.baselines")
