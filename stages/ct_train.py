"""Train the selected configuration.

python stages/ct_train.py --data data/processed/ct --run runs/ct/selected
"""

from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, data: Path, run: Path) -> str:
    from quintet.ct.study import train_run
    from quintet.training.fit import delete_resume_checkpoints

    p = params.ct
    record = train_run(run, data, p, p, params.compute, stage="ct_train", config="selected", seed=p.seed)
    delete_resume_checkpoints(record)
    return f"epoch {record.metrics['best_epoch']:.0f} chosen, model in {run}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.ct.module")
