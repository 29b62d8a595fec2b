"""Draw chest X-ray phantoms in the study's on-disk format.

python stages/landmarks_synthesize.py --out data/synthetic/landmarks
"""

from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, out: Path) -> str:
    from joblib import cpu_count

    from quintet.landmarks.synthetic import synthesize

    synthetic = params.landmarks.synthetic
    workers = params.compute.threads or cpu_count()  # an image depends on its number only, not on who draws it
    synthesize(out, **synthetic.model_dump(), workers=workers)
    return f"{synthetic.images} phantoms in {out}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.landmarks.synthetic")
