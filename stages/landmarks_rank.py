"""Rank the configurations and baselines: ranking.csv, .md, .html and figures.

python stages/landmarks_rank.py --sweep runs/landmarks/sweep --baselines runs/landmarks/baselines --out runs/landmarks/rank
  --report reports/landmarks/ranking
"""

from pathlib import Path

from quintet.experiment import rank_runs
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, sweep: Path, baselines: Path, out: Path, report: Path) -> str:
    return rank_runs("landmarks", params, sweep, baselines, out, report).verdict


if __name__ == "__main__":
    run_stage(main, imports="quintet.landmarks.comparison")
