"""Train the selected configuration.

python stages/perfusion_train.py --data data/processed/perfusion --run runs/perfusion/selected
"""

from pathlib import Path

from quintet.experiment import train_selected
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, data: Path, run: Path) -> str:
    metrics = train_selected("perfusion", params, data, run).metrics
    return f"validation Dice {metrics['last_valid_dice']:.3f} (2D, all pixels), model in {run}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.perfusion.model.module")
