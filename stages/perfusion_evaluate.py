"""Measure the selected configuration on the held-out subjects of its fold, in 3D.

python stages/perfusion_evaluate.py --data data/processed/perfusion --run runs/perfusion/selected
  --metrics reports/perfusion/selected.json
"""

from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, data: Path, run: Path, metrics: Path) -> str:
    from quintet.perfusion.study import evaluate_run
    from quintet.results import write_scores
    from quintet.tracking import upload

    reached = evaluate_run(run, data, params.perfusion, params.compute)
    write_scores(reached, metrics)
    upload(run)
    sides = f"left {reached['dice_left']:.4f}, right {reached['dice_right']:.4f}"
    return f"Dice {reached['dice']:.4f} ({sides}), figures in {run}/evaluation"


if __name__ == "__main__":
    run_stage(main, imports="quintet.perfusion.inference")
