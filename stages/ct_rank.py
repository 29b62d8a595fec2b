"""Rank configurations and baselines: ranking.csv, .md, .html and figures.

python stages/ct_rank.py --sweep runs/ct/sweep --baselines runs/ct/baselines --out runs/ct/rank --report reports/ct/ranking
"""

from pathlib import Path

from quintet.experiment import rank_runs
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, sweep: Path, baselines: Path, out: Path, report: Path) -> str:
    return rank_runs("ct", params, sweep, baselines, out, report).verdict


if __name__ == "__main__":
    run_stage(main, imports="quintet.ct.comparison")
