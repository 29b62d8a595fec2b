"""Turn a raw folder into arrays and folds by person, and describe it on the data page.

python stages/perfusion_prepare.py --raw data/synthetic/perfusion --out data/processed/perfusion
  --page reports/perfusion/data.html
"""

from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, raw: Path, out: Path, page: Path) -> str:
    from quintet.perfusion.analysis import write_data_page
    from quintet.perfusion.data.prepare import prepare

    doubts: list[str] = []
    data, skipped = prepare(raw, out, params.perfusion, doubts=doubts)
    write_data_page(page, data, skipped, doubts)
    people = data.table["subject"].nunique()
    return f"{len(data.table)} cases of {people} people ({len(skipped)} skipped), {data.fold_count} folds in {out}, see {page}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.perfusion.analysis")
