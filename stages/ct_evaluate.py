"""Evaluate how the test scans retrieve each other with the selected configuration's embeddings.

python stages/ct_evaluate.py --data data/processed/ct --run runs/ct/selected --metrics reports/ct/selected.json
"""

from pathlib import Path

from quintet.experiment import evaluate_selected
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, data: Path, run: Path, metrics: Path) -> str:
    scores = evaluate_selected("ct", params, data, run, metrics)
    return f"NDCG@10 {scores['ndcg_at_10']:.3f} of {scores['queries']:.0f} queries, figures in {run}/evaluation"


if __name__ == "__main__":
    run_stage(main, imports="quintet.ct.evaluation.inference")
