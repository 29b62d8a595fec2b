"""Train the selected configuration.

python stages/breakhis_train.py --data data/processed/breakhis --run runs/breakhis/selected
"""

from pathlib import Path

from quintet.experiment import train_selected
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, data: Path, run: Path) -> str:
    metrics = train_selected("breakhis", params, data, run).metrics
    return f"validation balanced accuracy {metrics['last_valid_balanced_accuracy']:.3f}, model in {run}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.breakhis.model.module")
