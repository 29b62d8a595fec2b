"""Turn raw scans into one cube each, with labels and split, and describe them on the data page.

python stages/ct_prepare.py --raw data/synthetic/ct --out data/processed/ct --page reports/ct/data.html
"""

from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, raw: Path, out: Path, page: Path) -> str:
    from joblib import cpu_count

    from quintet.ct.analysis import write_data_page
    from quintet.ct.data.prepare import prepare

    data, skipped = prepare(raw, out, params.ct, workers=params.compute.threads or cpu_count())
    write_data_page(page, data, skipped, params.ct)
    for problem in skipped:
        print(f"skipped: {problem}")
    patients = data.table["patient"].nunique()
    return f"{len(data.table)} scans of {patients} patients ({len(skipped)} skipped) in {out}, see {page}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.ct.analysis")
