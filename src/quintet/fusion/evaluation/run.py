"""Evaluate a trained run on the test patients, from each set of modalities, with and without test-time training."""

import time
from pathlib import Path

import pandas as pd
import torch

from quintet.errors import InputError
from quintet.fusion.data.prepared import Prepared
from quintet.fusion.evaluation.inference import Model, Values, encode_prepared
from quintet.fusion.evaluation.patterns import prepared_patterns
from quintet.fusion.evaluation.scores import evaluate, prepared_predictions
from quintet.fusion.metrics import auc_or_concordance_of
from quintet.params import Compute
from quintet.params.fusion import TTT, FusionEvaluation
from quintet.runs import Record


def evaluate_run(
    run: Path, data: Prepared, out: Path, evaluation: FusionEvaluation, compute: Compute, *, record: Record, detailed: bool
) -> dict[str, float]:
    """Predict and score the test patients into the folder `out`; returns the metrics. `detailed`: also measure quality and time
    by number of sampling and adaptation steps."""
    model = Model.load(run, compute.device, evaluation=evaluation)
    if model.preparation != data.preparation or model.classes != data.classes:
        raise InputError(f"{run} was trained on data that were prepared in another way; train it again")
    rows = data.rows("test")
    patients = encode_prepared(model, data, rows)
    configs = [record.config, record.config + TTT] if model.adapts else [record.config]
    parts: dict[str, list[pd.DataFrame]] = {config: [] for config in configs}
    seconds = dict.fromkeys(parts, 0.0)
    for pattern, chosen, kept in prepared_patterns(data, rows, missing=evaluation.test_missing):
        batch, mask = patients.take(chosen), torch.from_numpy(kept).to(model.device)
        for config in configs:
            started = time.monotonic()
            values = model.adapted(batch, mask) if config.endswith(TTT) else model(batch, mask)
            seconds[config] += time.monotonic() - started
            parts[config].append(prepared_predictions(config, pattern, data, rows[chosen], kept, *values))
    tables = {config: pd.concat(tables, ignore_index=True) for config, tables in parts.items()}
    target = data.target[rows].astype(float)

    def score(values: Values) -> float:
        table = pd.DataFrame(values).assign(target=target[:, 0], event=target[:, 1])
        return auc_or_concordance_of(table, range(values.shape[1]))

    details = {}
    if model.imputes:
        details["completion"] = model.completions(patients)
    if model.adapts:
        details["imputation"] = model.imputed(patients, encode_prepared(model, data, data.rows("train")))
        if detailed:
            details["curves"] = model.curves(patients, score)
    return evaluate(
        tables,
        data.classes,
        record=record,
        out=out,
        seconds={config: seconds[config] / max(1, len(table)) for config, table in tables.items()},
        details=details,
        history=pd.read_csv(run / "model" / "history.csv"),
    )
