"""Train an encoder and a predictor for each modality (late fusion) with each of the sweep's seeds; others freeze these encoders.

python stages/fusion_encoders.py --data data/processed/fusion --out runs/fusion/sweep/late
"""

from pathlib import Path

from quintet.experiment import run_sweep_config
from quintet.params import Params
from quintet.params.fusion import LATE
from quintet.stage import run_stage


def main(params: Params, data: Path, out: Path) -> str:
    runs = run_sweep_config("fusion", params, data, out, LATE)
    return f"{LATE}: {len(runs)} runs in {out}"


if __name__ == "__main__":
    run_stage(main, imports=("quintet.fusion.model.module", "quintet.fusion.evaluation.run"))
