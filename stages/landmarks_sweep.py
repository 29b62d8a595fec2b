"""Train and evaluate one configuration of the sweep with each of its seeds.

python stages/landmarks_sweep.py --config finetune --after runs/landmarks/sweep/frozen --data data/processed/landmarks
  --out runs/landmarks/sweep/finetune
"""

from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, config: str, after: Path, data: Path, out: Path) -> str:
    from quintet.landmarks.study import sweep_cell
    from quintet.tracking import upload

    reached = sweep_cell(out, data, after, config, params.landmarks, params.compute)
    for run in sorted(out.iterdir()):
        upload(run)
    return f"{config}: test error {reached['error_px']:.2f} px at 224, in {out}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.landmarks.module")
