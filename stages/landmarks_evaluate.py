"""Measure the selected configuration on the test images, once.

python stages/landmarks_evaluate.py --data data/processed/landmarks --run runs/landmarks/selected
  --metrics reports/landmarks/selected.json
"""

from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, data: Path, run: Path, metrics: Path) -> str:
    from quintet.landmarks.study import evaluate_run
    from quintet.results import write_scores
    from quintet.tracking import upload

    p = params.landmarks
    reached = evaluate_run(run, data, p, params.compute, all_figures=p.figures == "all")
    write_scores(reached, metrics)
    upload(run)
    return f"test error {reached['error_px']:.2f} px at 224, figures in {run}/evaluation/figures"


if __name__ == "__main__":
    run_stage(main, imports="quintet.landmarks.inference")
