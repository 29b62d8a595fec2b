"""Evaluate the baselines, and embeddings from elsewhere (ct.external).

python stages/ct_baselines.py --data data/processed/ct --out runs/ct/baselines
"""

from pathlib import Path

from quintet.files import atomic_folder
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, data: Path, out: Path) -> str:
    from quintet.ct.study import baseline_runs
    from quintet.tracking import upload

    with atomic_folder(out) as folder:
        metrics = baseline_runs(folder, data, params.ct)
    for name in metrics:
        upload(out / name / "seed0")
    return ", ".join(f"{name} {m['map_at_5']:.3f}" for name, m in metrics.items()) + f" (mAP@5) in {out}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.ct.study")
