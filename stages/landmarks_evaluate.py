"""Evaluate the selected configuration on the test images, once.

python stages/landmarks_evaluate.py --data data/processed/landmarks --run runs/landmarks/selected
  --metrics reports/landmarks/selected.json
"""

from pathlib import Path

from quintet.experiment import evaluate_selected
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, data: Path, run: Path, metrics: Path) -> str:
    scores = evaluate_selected("landmarks", params, data, run, metrics)
    return f"test error {scores['error_px']:.2f} px at 224, figures in {run}/evaluation/figures"


if __name__ == "__main__":
    run_stage(main, imports="quintet.landmarks.evaluation.inference")
