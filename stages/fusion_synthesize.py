"""Draw head phantoms and their clinical table.

python stages/fusion_synthesize.py --out data/synthetic/fusion
"""

from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, out: Path) -> str:
    from joblib import cpu_count

    from quintet.fusion.synthetic import synthesize

    synthetic = params.fusion.synthetic
    synthesize(out, synthetic, workers=params.compute.threads or cpu_count())
    return f"{synthetic.patients} patients in {out}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.fusion.synthetic")
