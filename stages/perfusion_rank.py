"""Rank the configurations, baselines and ensembles: ranking.csv, .md, .html and figures.

python stages/perfusion_rank.py --sweep runs/perfusion/sweep --baselines runs/perfusion/baselines
  --ensembles runs/perfusion/ensembles --out runs/perfusion/rank --report reports/perfusion/ranking
"""

from pathlib import Path

from quintet.experiment import rank_runs
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, sweep: Path, baselines: Path, ensembles: Path, out: Path, report: Path) -> str:
    return rank_runs("perfusion", params, sweep, baselines, out, report, ensembles=ensembles).verdict


if __name__ == "__main__":
    run_stage(main, imports="quintet.perfusion.comparison")
