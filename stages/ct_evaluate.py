"""Measure how the test scans retrieve each other by the selected configuration's embeddings.

python stages/ct_evaluate.py --data data/processed/ct --run runs/ct/selected --metrics reports/ct/selected.json
"""

from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, data: Path, run: Path, metrics: Path) -> str:
    from quintet.ct.study import evaluate_run
    from quintet.results import write_scores
    from quintet.tracking import upload

    reached = evaluate_run(run, data, params.ct, params.compute)
    write_scores(reached, metrics)
    upload(run)
    return f"mAP@5 {reached['map_at_5']:.3f} of {reached['queries']:.0f} queries, figures in {run}/evaluation"


if __name__ == "__main__":
    run_stage(main, imports="quintet.ct.inference")
