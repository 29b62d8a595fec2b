"""Raw studies to one cube each, labels, split and the data-set page.

python stages/ct_prepare.py --raw data/synthetic/ct --out data/processed/ct --page reports/ct/data.html
"""

from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, raw: Path, out: Path, page: Path) -> str:
    from joblib import cpu_count

    from quintet.ct.analysis import write_data_page
    from quintet.ct.data import prepare

    prepared, skipped = prepare(raw, out, params.ct, workers=params.compute.threads or cpu_count())
    write_data_page(page, prepared, skipped, params.ct)
    for problem in skipped:
        print(f"skipped: {problem}")
    people = prepared.index["patient"].nunique()
    return f"{len(prepared.index)} studies of {people} patients ({len(skipped)} skipped) in {out}, described in {page}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.ct.analysis")
