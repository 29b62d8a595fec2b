"""Train the selected configuration.

python stages/landmarks_train.py --data data/processed/landmarks --run runs/landmarks/selected
"""

from pathlib import Path

from quintet.experiment import train_selected
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, data: Path, run: Path) -> str:
    metrics = train_selected("landmarks", params, data, run).metrics
    return f"validation error {metrics['best_valid_error_px']:.2f} px, model in {run}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.landmarks.model.module")
