"""Rank configurations and baselines: ranking.csv, .md, .html and figures.

python stages/fusion_rank.py --sweep runs/fusion/sweep --baselines runs/fusion/baselines --out runs/fusion/rank
  --report reports/fusion/ranking
"""

from pathlib import Path

from quintet.experiment import rank_runs
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, sweep: Path, baselines: Path, out: Path, report: Path) -> str:
    return rank_runs("fusion", params, sweep, baselines, out, report).verdict


if __name__ == "__main__":
    run_stage(main, imports="quintet.fusion.comparison")
