"""Train and evaluate one configuration of the sweep with each of its seeds.

python stages/landmarks_sweep.py --config finetune --data data/processed/landmarks --out runs/landmarks/sweep/finetune
"""

from pathlib import Path

from quintet.experiment import run_sweep_config
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, config: str, data: Path, out: Path) -> str:
    metrics = run_sweep_config("landmarks", params, data, out, config)
    error = sum(run["error_px"] for run in metrics) / len(metrics)
    return f"{config}: test error {error:.2f} px at 224, in {out}"


if __name__ == "__main__":
    run_stage(main, imports=("quintet.landmarks.model.module", "quintet.landmarks.evaluation.inference"))
