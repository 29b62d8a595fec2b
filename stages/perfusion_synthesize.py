"""Draw perfusion phantoms in nnU-Net's raw layout.

python stages/perfusion_synthesize.py --out data/synthetic/perfusion
"""

from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, out: Path) -> str:
    from joblib import cpu_count

    from quintet.perfusion.synthetic import synthesize

    synthetic = params.perfusion.synthetic
    synthesize(out, subjects=synthetic.subjects, seed=synthetic.seed, workers=params.compute.threads or cpu_count())
    return f"{synthetic.subjects} people in {out}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.perfusion.synthetic")
