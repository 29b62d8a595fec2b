"""Evaluate the baseline that uses the clinical features alone.

python stages/fusion_baselines.py --data data/processed/fusion --out runs/fusion/baselines
"""

from pathlib import Path

from quintet.experiment import run_baselines
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, data: Path, out: Path) -> str:
    metrics = run_baselines("fusion", params, data, out)
    return f"{', '.join(metrics)} in {out}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.fusion.baselines")
