"""Predict the test patients from every set of modalities with the selected configuration.

python stages/fusion_evaluate.py --data data/processed/fusion --run runs/fusion/selected --metrics reports/fusion/selected.json
"""

from pathlib import Path

from quintet.params import Params
from quintet.stage import run_stage


def main(params: Params, data: Path, run: Path, metrics: Path) -> str:
    from quintet.fusion.study import evaluate_run
    from quintet.results import write_scores
    from quintet.tracking import upload

    reached = evaluate_run(run, data, params.fusion, params.compute, curves=True)
    write_scores(reached, metrics)
    upload(run)
    score = "auc" if "auc/recorded" in reached else "concordance"
    return f"{score} {reached[f'{score}/recorded']:.3f} with everything recorded, figures in {run}/evaluation"


if __name__ == "__main__":
    run_stage(main, imports="quintet.fusion.inference")
