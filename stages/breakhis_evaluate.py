"""Evaluate the selected configuration on the test patients of its fold.

python stages/breakhis_evaluate.py --data data/processed/breakhis --run runs/breakhis/selected
  --metrics reports/breakhis/selected.json
"""

from pathlib import Path

from quintet.experiment import evaluate_selected
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, data: Path, run: Path, metrics: Path) -> str:
    scores = evaluate_selected("breakhis", params, data, run, metrics)
    brier = f"Brier score {scores['brier']:.3f} of {scores['patients']:.0f} patients"
    return f"{brier}, figures in {run}/evaluation"


if __name__ == "__main__":
    run_stage(main, imports="quintet.breakhis.evaluation.run")
