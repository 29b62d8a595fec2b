"""Simulate chest phantoms as DICOM series and NIfTI files.

python stages/ct_synthesize.py --out data/synthetic/ct
"""

from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, out: Path) -> str:
    from joblib import cpu_count

    from quintet.ct.synthetic import synthesize

    synthetic, workers = params.ct.synthetic, params.compute.threads or cpu_count()
    synthesize(out, synthetic, workers=workers)
    return f"{synthetic.scans} scans in {out}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.ct.synthetic")
