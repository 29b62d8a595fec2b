"""Evaluate a trained run on the test patients, from each set of modalities, with and without test-time training, and on the
patients of other hospitals."""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from quintet.errors import InputError
from quintet.fusion.data.prepared import EXTERNAL, Prepared
from quintet.fusion.evaluation.inference import Encoded, Model, Values, encode_prepared
from quintet.fusion.evaluation.patterns import RECORDED, prepared_patterns
from quintet.fusion.evaluation.scores import evaluate, prepared_predictions
from quintet.fusion.metrics import auc_or_concordance_of
from quintet.fusion.model.losses import loss_of_values
from quintet.params import Compute
from quintet.params.fusion import ADAPTATION_STEPS, TTT, FusionEvaluation
from quintet.runs import Record


def evaluate_run(
    run: Path, data: Prepared, out: Path, evaluation: FusionEvaluation, compute: Compute, *, record: Record, detailed: bool
) -> dict[str, float]:
    """Predict and score the test patients into the folder `out`; returns the metrics. `detailed`: also measure quality and time
    by number of sampling and adaptation steps."""
    model = Model.load(run, compute.device, evaluation=evaluation)
    if model.preparation != data.preparation or model.classes != data.classes:
        raise InputError(f"{run} was trained on data that were prepared in another way; train it again")
    if model.adapts:
        valid = data.rows("valid")
        target = torch.from_numpy(data.target[valid])
        model = model.choose_adaptation(encode_prepared(model, data, valid), lambda values: loss_of_values(values, target))
    rows = data.rows("test")
    patients = encode_prepared(model, data, rows)
    configs = [record.config, record.config + TTT] if model.adapts else [record.config]
    parts: dict[str, list[pd.DataFrame]] = {config: [] for config in configs}
    seconds = dict.fromkeys(parts, 0.0)
    for pattern, chosen, kept in prepared_patterns(data, rows, missing=evaluation.test_missing):
        batch, mask = patients.take(chosen), torch.from_numpy(kept).to(model.device)
        for config in configs:
            started = time.monotonic()
            parts[config].append(_predict(model, config, pattern, data, rows[chosen], batch, mask))
            seconds[config] += time.monotonic() - started
    tables = {config: pd.concat(tables, ignore_index=True) for config, tables in parts.items()}

    def score(values: Values) -> float:
        table = pd.DataFrame(values).assign(target=data.target[rows, 0], event=data.target[rows, 1])
        return auc_or_concordance_of(table, range(values.shape[1]))

    details = {}
    elsewhere = data.rows(EXTERNAL)
    if len(elsewhere):
        batch = encode_prepared(model, data, elsewhere)
        found = [_predict(model, config, RECORDED, data, elsewhere, batch, batch.present) for config in configs]
        details[EXTERNAL] = pd.concat(found, ignore_index=True)
    if model.imputes:
        details["completion"] = model.completions(patients)
    if model.adapts:
        details["imputation"] = model.imputed(patients, encode_prepared(model, data, data.rows("train")))
        if detailed:
            details["curves"] = model.curves(patients, score)
    metrics = evaluate(
        tables,
        data.classes,
        record=record,
        out=out,
        seconds={config: seconds[config] / max(1, len(table)) for config, table in tables.items()},
        details=details,
        history=pd.read_csv(run / "model" / "history.csv"),
    )
    return metrics | ({ADAPTATION_STEPS: float(model.adaptation_steps)} if model.adapts else {})


def _predict(
    model: Model, config: str, pattern: str, data: Prepared, rows: NDArray[np.int64], patients: Encoded, kept: torch.Tensor
) -> pd.DataFrame:
    values = model.adapted(patients, kept) if config.endswith(TTT) else model(patients, kept)
    return prepared_predictions(config, pattern, data, rows, kept.cpu().numpy(), *values)
