"""Turn raw patients and masks into image cubes, clinical features, targets and a split, and describe them on the data page.

python stages/fusion_prepare.py --raw data/synthetic/fusion --masks data/segmented/fusion --out data/processed/fusion
  --page reports/fusion/data.html
"""

from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, raw: Path, masks: Path, out: Path, page: Path) -> str:
    from joblib import cpu_count

    from quintet.fusion.analysis import write_data_page
    from quintet.fusion.data.prepare import prepare

    data, skipped = prepare(raw, masks, out, params.fusion, workers=params.compute.threads or cpu_count())
    write_data_page(page, data, skipped, params.fusion, masks=masks)
    for problem in skipped:
        print(f"skipped: {problem}")
    return f"{len(data.table)} patients ({len(skipped)} problems skipped) in {out}, see {page}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.fusion.analysis")
