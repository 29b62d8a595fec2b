"""Turn the raw tree into arrays, an index and folds by patient, and describe it on the data page.

python stages/breakhis_prepare.py --raw data/synthetic/breakhis --out data/processed/breakhis
  --page reports/breakhis/data.html
"""

from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, raw: Path, out: Path, page: Path) -> str:
    from quintet.breakhis.analysis import write_data_page
    from quintet.breakhis.data.prepare import prepare

    data, skipped = prepare(raw, out, params.breakhis)
    write_data_page(page, data, skipped, params.breakhis)
    for problem in skipped:
        print(f"skipped: {problem}")
    patients = data.table["patient"].nunique()
    return f"{len(data.table)} images of {patients} patients ({len(skipped)} skipped) in {out}, described in {page}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.breakhis.analysis")
