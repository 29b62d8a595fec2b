"""Rank the configurations: ranking.csv, .md, .html and figures.

python stages/breakhis_rank.py --sweep runs/breakhis/sweep --out runs/breakhis/rank --report reports/breakhis/ranking
"""

from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, sweep: Path, out: Path, report: Path) -> str:
    from quintet.breakhis.comparison import compare
    from quintet.tracking import upload

    verdict = compare(params, sweep, out, report)
    upload(out)
    return verdict


if __name__ == "__main__":
    run_stage(main, imports="quintet.breakhis.comparison")
