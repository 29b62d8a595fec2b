"""Train and evaluate one configuration of the sweep with each of its seeds.

python stages/fusion_sweep.py --config flow --data data/processed/fusion --out runs/fusion/sweep/flow
"""

from pathlib import Path

from quintet.experiment import run_sweep_config
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, config: str, data: Path, out: Path) -> str:
    metrics = run_sweep_config("fusion", params, data, out, config)
    score = "auc" if "auc/recorded" in metrics[0] else "concordance"
    mean = sum(run[f"{score}/recorded"] for run in metrics) / len(metrics)
    return f"{config}: {score} {mean:.3f} from all recorded modalities, mean of {len(metrics)} runs, in {out}"


if __name__ == "__main__":
    run_stage(main, imports=("quintet.fusion.model.module", "quintet.fusion.evaluation.run"))
