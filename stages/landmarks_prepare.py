"""Turn a raw folder into one array, one table and a split, and describe it on the data page.

python stages/landmarks_prepare.py --raw data/synthetic/landmarks --out data/processed/landmarks
  --page reports/landmarks/data.html
"""

from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, raw: Path, out: Path, page: Path) -> str:
    from quintet.landmarks.analysis import write_data_page
    from quintet.landmarks.data.prepare import prepare

    data, skipped = prepare(raw, out, params.landmarks)
    write_data_page(page, data, skipped)
    parts = ", ".join(f"{len(data.rows(part))} {part}" for part in ("train", "valid", "test"))
    return f"{len(data.table)} images ({parts}; {len(skipped)} rows skipped) in {out}, see {page}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.landmarks.analysis")
