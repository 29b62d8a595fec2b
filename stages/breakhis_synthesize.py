"""Draw breast-tissue phantoms in the BreaKHis tree.

python stages/breakhis_synthesize.py --out data/synthetic/breakhis
"""

from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, out: Path) -> str:
    from joblib import cpu_count

    from quintet.breakhis.synthetic import synthesize

    synthetic = params.breakhis.synthetic
    workers = params.compute.threads or cpu_count()
    synthesize(out, **synthetic.model_dump(), workers=workers)
    return f"{synthetic.patients} patients in {out}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.breakhis.synthetic")
