"""Train and evaluate one configuration of the sweep on each of its folds with each of its seeds.

python stages/breakhis_sweep.py --config mmnet --data data/processed/breakhis --out runs/breakhis/sweep/mmnet
"""

from pathlib import Path

from quintet.experiment import run_sweep_config
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, config: str, data: Path, out: Path) -> str:
    metrics = run_sweep_config("breakhis", params, data, out, config)
    brier = sum(run["brier"] for run in metrics) / len(metrics)
    return f"{config}: Brier score {brier:.3f} over {len(metrics)} runs, in {out}"


if __name__ == "__main__":
    run_stage(main, imports=("quintet.breakhis.model.module", "quintet.breakhis.evaluation.run"))
