"""Train the selected configuration.

python stages/breakhis_train.py --data data/processed/breakhis --run runs/breakhis/selected
"""

from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, data: Path, run: Path) -> str:
    from quintet.breakhis.study import train_run
    from quintet.training.fit import delete_resume_checkpoints

    p = params.breakhis
    record = train_run(run, data, p, p, params.compute, stage="breakhis_train", config="selected", fold=p.fold, seed=p.seed)
    delete_resume_checkpoints(record)
    return f"validation balanced accuracy {record.metrics['best_valid_balanced_accuracy']:.3f}, model in {run}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.breakhis.module")
