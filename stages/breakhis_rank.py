"""Rank the configurations: ranking.csv, .md, .html and figures.

python stages/breakhis_rank.py --sweep runs/breakhis/sweep --baselines runs/breakhis/baselines --out runs/breakhis/rank
  --report reports/breakhis/ranking
"""

from pathlib import Path

from quintet.experiment import rank_runs
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, sweep: Path, baselines: Path, out: Path, report: Path) -> str:
    return rank_runs("breakhis", params, sweep, baselines, out, report).verdict


if __name__ == "__main__":
    run_stage(main, imports="quintet.breakhis.comparison")
