"""Rank the configurations, ensembles and baselines: ranking.csv, .md, .html and figures.

python stages/landmarks_rank.py --sweep runs/landmarks/sweep --baselines runs/landmarks/baselines
  --ensembles runs/landmarks/ensembles --out runs/landmarks/rank --report reports/landmarks/ranking
"""

from pathlib import Path

from quintet.experiment import rank_runs
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, sweep: Path, baselines: Path, ensembles: Path, out: Path, report: Path) -> str:
    return rank_runs("landmarks", params, sweep, baselines, out, report, ensembles=ensembles).verdict


if __name__ == "__main__":
    run_stage(main, imports="quintet.landmarks.comparison")
