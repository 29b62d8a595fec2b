"""Upload runs that MLflow lacks, and write one page about all studies.

python stages/report.py --runs runs --reports reports --out reports/index.html
"""

import sys
from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, runs: Path, reports: Path, out: Path) -> str:
    from quintet.errors import InputError
    from quintet.report import write_report
    from quintet.serving.model import write_model
    from quintet.tracking import sync

    try:
        sync(Path.cwd(), write_model)
    except InputError as error:  # the page is worth having without the mirror
        print(f"quintet: {error}", file=sys.stderr)
    return write_report(params, runs, reports, out)


if __name__ == "__main__":
    run_stage(main, imports="quintet.report")
