"""Measure the selected configuration on the held-out subjects of its fold, in 3D.

python stages/perfusion_evaluate.py --data data/processed/perfusion --run runs/perfusion/selected
  --metrics reports/perfusion/selected.json
"""

import json
from pathlib import Path

from quintet.files import whole_file
from quintet.params import Params
from quintet.stage import stage


def main(params: Params, data: Path, run: Path, metrics: Path) -> str:
    from quintet.perfusion.study import evaluate_run
    from quintet.tracking import upload

    reached = evaluate_run(run, data, params.perfusion, params.compute)
    with whole_file(metrics) as beside:
        shown = {name: round(value, 4) for name, value in reached.items() if "seconds" not in name}
        beside.write_text(json.dumps(shown, indent=1) + "\n", encoding="utf-8")
    upload(run)
    sides = f"left {reached['dice_left']:.4f}, right {reached['dice_right']:.4f}"
    return f"Dice {reached['dice']:.4f} ({sides}), figures in {run}/evaluation"


if __name__ == "__main__":
    stage(main, needs="quintet.perfusion.prediction")
