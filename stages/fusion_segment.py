"""Make a mask for every image, or read it from the cache.

python stages/fusion_segment.py --raw data/synthetic/fusion --out data/segmented/fusion
"""

from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, raw: Path, out: Path) -> str:
    from joblib import cpu_count

    from quintet.fusion.data.segmentation import segment

    table, made = segment(raw, out, params.fusion, workers=params.compute.threads or cpu_count())
    for problem in table["status"][table["status"] != "ok"]:
        print(f"skipped: {problem}")
    segmenter = params.fusion.segmentation.segmenter
    return f"segmenter {segmenter}: {len(table)} images, {made} new masks, the others from the cache; in {out}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.fusion.data.segmentation")
