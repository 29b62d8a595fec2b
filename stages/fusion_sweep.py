"""Train and evaluate one configuration of the sweep with one seed.

python stages/fusion_sweep.py --config diffusion --seed 0 --data data/processed/fusion --out runs/fusion/sweep/diffusion/seed0
"""

from pathlib import Path

from quintet.experiment import run_sweep_entry
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, config: str, seed: int, data: Path, out: Path) -> str:
    metrics = run_sweep_entry("fusion", params, data, out, config, seed=seed)
    score = "auc" if "auc/recorded" in metrics else "concordance"
    return f"{config}, seed {seed}: {score} {metrics[f'{score}/recorded']:.3f} from all recorded modalities, in {out}"


if __name__ == "__main__":
    run_stage(main, imports=("quintet.fusion.model.module", "quintet.fusion.evaluation.run"))
