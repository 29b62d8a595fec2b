"""Train the selected configuration.

python stages/ct_train.py --data data/processed/ct --run runs/ct/selected
"""

from pathlib import Path

from quintet.experiment import train_selected
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, data: Path, run: Path) -> str:
    metrics = train_selected("ct", params, data, run).metrics
    return f"best epoch {metrics['best_epoch']:.0f} (from 0), model in {run}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.ct.model.module")
