"""Measure how the test scans retrieve each other by the selected configuration's embeddings.

python stages/ct_evaluate.py --data data/processed/ct --run runs/ct/selected --metrics reports/ct/selected.json
"""

import json
from pathlib import Path

from quintet.files import whole_file
from quintet.params import Params
from quintet.stage import stage


def main(params: Params, data: Path, run: Path, metrics: Path) -> str:
    from quintet.ct.study import evaluate_run
    from quintet.tracking import upload

    reached = evaluate_run(run, data, params.ct, params.compute)
    with whole_file(metrics) as beside:
        shown = {name: round(value, 4) for name, value in reached.items() if "seconds" not in name}
        beside.write_text(json.dumps(shown, indent=1) + "\n", encoding="utf-8")
    upload(run)
    return f"mAP@5 {reached['map_at_5']:.3f} of {reached['queries']:.0f} queries, figures in {run}/evaluation"


if __name__ == "__main__":
    stage(main, needs="quintet.ct.prediction")
