"""The study's runs: which parameters make one, and training plus evaluation of a configuration into a run folder."""

import time
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet.errors import InputError
from quintet.files import write_json
from quintet.fusion.baselines import clinical_only
from quintet.fusion.data import Prepared, load
from quintet.fusion.evaluation import evaluate, headline_of, patterns, predictions
from quintet.params import Compute, Fusion, FusionConfig
from quintet.params.fusion import BASELINES, TTT
from quintet.runs import Record, new_record

# Shared by every configuration; dvc.yaml lists the same keys for the stages that train (a test compares them).
TRAINING = (
    "survival_loss",
    "encoder",
    "width",
    "clinical_units",
    "hidden",
    "heads",
    "predictor_units",
    "dropout",
    "recompute",
    "diffusion",
    "sampling_steps",
    "samples",
    "loss_weights",
    "temperature",
    "epochs",
    "batch_size",
    "precision",
    "rate",
    "rate_floor",
    "warmup",
    "weight_decay",
    "clip_norm",
    "accumulate",
    "patience",
    "augment",
    "ttt",
)
EVALUATION = ("test_missing",)
Values = NDArray[np.float64]


def train_run(
    run: Path, data: Path, choice: FusionConfig, shared: Fusion, compute: Compute, *, stage: str, config: str, seed: int
) -> Record:
    """Train one configuration into `run` = {record.json, model/}; returns its record."""
    from quintet.fusion.module import train

    params = choice.model_dump(include=set(FusionConfig.model_fields)) | shared.model_dump(include=set(TRAINING))
    record = new_record("fusion", stage, config, seed=seed, params=params, inputs={"data": data})
    record = train(load(data), run / "model", choice, shared, compute, record=record)
    record.save(run)
    return record


def evaluate_run(run: Path, data: Path, shared: Fusion, compute: Compute, *, curves: bool) -> dict[str, float]:
    """Predict the test patients from each set of modalities, with and without test-time training, and write the run's
    `evaluation/`.

    `curves`: also quality and time by sampling and adaptation steps.
    """
    import torch

    from quintet.fusion.inference import Model, of_prepared

    prepared, record = load(data), Record.load(run)
    if compute.threads:
        torch.set_num_threads(compute.threads)
    model = Model.load(run, compute.device)
    if model.prepared != prepared.how or model.classes != prepared.classes:
        raise InputError(f"{run} was trained on data prepared in another way than {data}; train it again")
    rows = prepared.rows("test")
    patients = of_prepared(model, prepared, rows)
    what = _patterns(prepared, rows, shared)
    configs = [record.config, record.config + TTT] if model.adapts else [record.config]
    found: dict[str, list[pd.DataFrame]] = {config: [] for config in configs}
    seconds = dict.fromkeys(found, 0.0)
    for name, kept in what.items():
        chosen = np.flatnonzero(kept.any(1))
        if not len(chosen):
            continue
        few, mask = patients.take(chosen), torch.from_numpy(kept[chosen]).to(model.device)
        for config, own in found.items():
            started = time.monotonic()
            values = model.adapted(few, mask) if config.endswith(TTT) else model(few, mask)
            seconds[config] += time.monotonic() - started
            own.append(_predictions(config, name, prepared, rows[chosen], kept[chosen], *values))
    tables = {config: pd.concat(own, ignore_index=True) for config, own in found.items()}
    whole = prepared.target[rows].astype(float)

    def score(values: Values) -> float:
        return headline_of(pd.DataFrame(values).assign(target=whole[:, 0], event=whole[:, 1]), range(values.shape[1]))

    extra = {}
    if model.adapts:
        extra["imputation"] = model.imputed(patients, of_prepared(model, prepared, prepared.rows("train")))
        if curves:
            extra["curves"] = model.curves(patients, score)
    cost = {config: value / max(1, len(tables[config])) for config, value in seconds.items()}
    settings = shared.model_dump(include=set(EVALUATION))
    metrics = evaluate(
        tables, prepared.classes, record=record, out=run / "evaluation", seconds=cost, extra=extra, model=run / "model"
    )
    write_json(run / "evaluation" / "settings.json", settings)
    return metrics


def baseline_runs(out: Path, data: Path, shared: Fusion) -> dict[str, dict[str, float]]:
    """Evaluate the baselines into run folders below `out` (without model/)."""
    prepared = load(data)
    rows = prepared.rows("test")
    what = _patterns(prepared, rows, shared)
    metrics = {}
    for name in BASELINES:
        found = []
        for pattern, kept in what.items():
            chosen = np.flatnonzero(kept.any(1))
            if len(chosen):
                values = clinical_only(prepared, rows[chosen], kept[chosen, -1])
                found.append(_predictions(name, pattern, prepared, rows[chosen], kept[chosen], values))
        settings = shared.model_dump(include=set(EVALUATION))
        record = new_record("fusion", "fusion_baselines", name, seed=0, params=settings, inputs={"data": data})
        run = out / name / "seed0"
        table = pd.concat(found, ignore_index=True)
        metrics[name] = evaluate({name: table}, prepared.classes, record=record, out=run / "evaluation")
        record.save(run)
    return metrics


def _patterns(data: Prepared, rows: NDArray[np.int64], shared: Fusion) -> dict[str, NDArray[np.bool_]]:
    names = [str(data.table["patient"][row]) for row in rows]
    return patterns(data.modalities, data.present[rows], data.clinical[rows], names, missing=shared.test_missing)


def _predictions(
    config: str,
    pattern: str,
    data: Prepared,
    rows: NDArray[np.int64],
    kept: NDArray[np.bool_],
    values: Values,
    spread: Values | float = 0.0,
    adapted: NDArray[np.bool_] | bool = False,
) -> pd.DataFrame:
    """Of prepared patients (row numbers), predicted from what is `kept` `[P, K]` of theirs."""
    used = ["+".join(np.array(data.modalities)[own]) for own in kept]
    return predictions(
        config,
        pattern,
        data.table["patient"].to_numpy()[rows],
        used,
        values,
        data.target[rows].astype(float),
        data.classes,
        spread=spread,
        adapted=adapted,
    )


def sweep_cell(out: Path, data: Path, config: str, seed: int, shared: Fusion, compute: Compute) -> dict[str, float]:
    """Train and evaluate one configuration with one seed into the run folder `out`; returns its metrics."""
    from quintet.training.cells import cell

    def train(run: Path, choice: FusionConfig) -> Record:
        return train_run(run, data, choice, shared, compute, stage="fusion_sweep", config=config, seed=seed)

    return cell(out, shared.configs, config, train, lambda run: evaluate_run(run, data, shared, compute, curves=False))
