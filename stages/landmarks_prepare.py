"""Raw folder to one array, one table, a split and the data-set page.

python stages/landmarks_prepare.py --raw data/synthetic/landmarks --out data/processed/landmarks
  --page reports/landmarks/data.html
"""

from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, raw: Path, out: Path, page: Path) -> str:
    from quintet.landmarks.analysis import write_data_page
    from quintet.landmarks.data import prepare

    prepared, skipped = prepare(raw, out, params.landmarks)
    write_data_page(page, prepared, skipped)
    parts = ", ".join(f"{len(prepared.rows(part))} {part}" for part in ("train", "valid", "test"))
    return f"{len(prepared.cases)} images ({parts}; {len(skipped)} rows skipped) in {out}, described in {page}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.landmarks.analysis")
