"""Predict the test patients from every set of modalities with the selected configuration.

python stages/fusion_evaluate.py --data data/processed/fusion --run runs/fusion/selected --metrics reports/fusion/selected.json
"""

from pathlib import Path

from quintet.experiment import evaluate_selected
from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, data: Path, run: Path, metrics: Path) -> str:
    scores = evaluate_selected("fusion", params, data, run, metrics)
    score = "auc" if "auc/recorded" in scores else "concordance"
    return f"{score} {scores[f'{score}/recorded']:.3f} from all recorded modalities, figures in {run}/evaluation"


if __name__ == "__main__":
    run_stage(main, imports="quintet.fusion.evaluation.run")
