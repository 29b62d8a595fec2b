"""A mask for every image, from the cache where it is there.

python stages/fusion_segment.py --raw data/synthetic/fusion --out data/segmented/fusion
"""

from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, raw: Path, out: Path) -> str:
    from joblib import cpu_count

    from quintet.fusion.segmentation import segment

    table, made = segment(raw, out, params.fusion, workers=params.compute.threads or cpu_count())
    for problem in table["status"][table["status"] != "ok"]:
        print(f"skipped: {problem}")
    return f"segmenter {params.fusion.segmenter}: {len(table)} images, {made} masks made now, the others from the cache; in {out}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.fusion.segmentation")
