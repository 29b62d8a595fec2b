"""Train the selected configuration.

python stages/perfusion_train.py --data data/processed/perfusion --run runs/perfusion/selected
"""

from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, data: Path, run: Path) -> str:
    from quintet.perfusion.study import train_run
    from quintet.training.fit import delete_resume_checkpoints

    p = params.perfusion
    record = train_run(run, data, p, p, params.compute, stage="perfusion_train", config="selected", fold=p.fold, seed=p.seed)
    delete_resume_checkpoints(record)
    return f"validation Dice {record.metrics['last_valid_dice']:.3f} (2D, all pixels), model in {run}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.perfusion.module")
