"""Train the selected configuration.

python stages/landmarks_train.py --data data/processed/landmarks --run runs/landmarks/selected
"""

from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, data: Path, run: Path) -> str:
    from quintet.landmarks.study import train_run
    from quintet.training.fit import delete_resume_checkpoints

    p = params.landmarks
    start = None if p.start_from == "none" else Path(p.start_from)
    record = train_run(run, data, p, p, params.compute, stage="landmarks_train", config="selected", seed=p.seed, start=start)
    delete_resume_checkpoints(record)
    return f"validation error {record.metrics['best_valid_error_px']:.2f} px, model in {run}"


if __name__ == "__main__":
    run_stage(main, imports="quintet.landmarks.module")
