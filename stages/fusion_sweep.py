"""Train and evaluate one configuration of the sweep with one seed.

python stages/fusion_sweep.py --config diffusion --seed 0 --data data/processed/fusion --out runs/fusion/sweep/diffusion/seed0
"""

from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, config: str, seed: int, data: Path, out: Path) -> str:
    from quintet.fusion.study import sweep_cell
    from quintet.tracking import upload

    reached = sweep_cell(out, data, config, seed, params.fusion, params.compute)
    upload(out)
    score = "auc" if "auc/recorded" in reached else "concordance"
    return f"{config}, seed {seed}: {score} {reached[f'{score}/recorded']:.3f} with everything recorded, in {out}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.fusion.module")
