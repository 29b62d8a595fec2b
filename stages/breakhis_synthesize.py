"""Draw breast-tissue phantoms in the BreaKHis tree.

python stages/breakhis_synthesize.py --out data/synthetic/breakhis
"""

from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, out: Path) -> str:
    from joblib import cpu_count

    from quintet.breakhis.synthetic import synthesize

    how = params.breakhis.synthetic
    synthesize(out, patients=how.patients, width=how.width, seed=how.seed, workers=params.compute.threads or cpu_count())
    return f"{how.patients} patients in {out}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.breakhis.synthetic")
