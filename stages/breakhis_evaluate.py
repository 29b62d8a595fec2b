"""Measure the selected configuration on the test patients of its fold.

python stages/breakhis_evaluate.py --data data/processed/breakhis --run runs/breakhis/selected
  --metrics reports/breakhis/selected.json
"""

from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, data: Path, run: Path, metrics: Path) -> str:
    from quintet.breakhis.study import evaluate_run
    from quintet.results import write_scores
    from quintet.tracking import upload

    reached = evaluate_run(run, data, params.compute, pictures=True)
    write_scores(reached, metrics)
    upload(run)
    return (
        f"balanced accuracy {reached['balanced_accuracy']:.3f} of {reached['patients']:.0f} patients, figures in {run}/evaluation"
    )


if __name__ == "__main__":
    run_stage(main, imports="quintet.breakhis.inference")
