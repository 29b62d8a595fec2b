"""Evaluate the clinical row alone.

python stages/fusion_baselines.py --data data/processed/fusion --out runs/fusion/baselines
"""

from pathlib import Path

from quintet.files import atomic_folder
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, data: Path, out: Path) -> str:
    from quintet.fusion.study import baseline_runs
    from quintet.tracking import upload

    with atomic_folder(out) as folder:
        metrics = baseline_runs(folder, data, params.fusion)
    for name in metrics:
        upload(out / name / "seed0")
    return f"{', '.join(metrics)} in {out}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.fusion.study")
