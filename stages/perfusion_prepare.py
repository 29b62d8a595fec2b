"""Raw folder to arrays, folds by subject and the data-set page.

python stages/perfusion_prepare.py --raw data/synthetic/perfusion --out data/processed/perfusion --page
reports/perfusion/data.html
"""

from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, raw: Path, out: Path, page: Path) -> str:
    from quintet.perfusion.analysis import write_data_page
    from quintet.perfusion.data import prepare

    prepared = prepare(raw, out, params.perfusion)
    write_data_page(page, prepared)
    subjects = prepared.cases["subject"].nunique()
    return f"{len(prepared.cases)} cases of {subjects} subjects, {len(prepared.folds)} folds in {out}, described in {page}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.perfusion.analysis")
