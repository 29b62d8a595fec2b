"""Evaluate the selected configuration on the held-out people of its fold, in 3D.

python stages/perfusion_evaluate.py --data data/processed/perfusion --run runs/perfusion/selected
  --metrics reports/perfusion/selected.json
"""

from pathlib import Path

from quintet.experiment import evaluate_selected
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, data: Path, run: Path, metrics: Path) -> str:
    scores = evaluate_selected("perfusion", params, data, run, metrics)
    sides = f"left {scores['dice_left']:.4f}, right {scores['dice_right']:.4f}"
    return f"Dice {scores['dice']:.4f} ({sides}), figures in {run}/evaluation"


if __name__ == "__main__":
    run_stage(main, imports="quintet.perfusion.evaluation.inference")
