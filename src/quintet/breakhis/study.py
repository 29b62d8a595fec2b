"""The study's runs: which parameters make one, and training plus evaluation of a configuration into a run folder."""

import time
from dataclasses import replace
from pathlib import Path

import pandas as pd

from quintet.breakhis.data import load
from quintet.breakhis.evaluation import evaluate
from quintet.breakhis.metrics import lock_threshold
from quintet.errors import InputError
from quintet.files import write_json
from quintet.params import BreakHis, BreakHisConfig, Compute
from quintet.runs import Record, new_record

# Shared by every configuration; dvc.yaml lists the same keys for the stages that train (a test compares them).
TRAINING = (
    "backbone",
    "weights",
    "stochastic_depth",
    "units",
    "dropout",
    "validation_dropout",
    "epochs",
    "samples",
    "batch_size",
    "precision",
    "rate",
    "schedule",
    "rate_floor",
    "warmup",
    "plateau_patience",
    "plateau_factor",
    "weight_decay",
    "clip_norm",
    "accumulate",
    "patience",
    "loss",
    "mixup",
    "drop_magnification",
    "augment",
)


def train_run(
    run: Path,
    data: Path,
    choice: BreakHisConfig,
    shared: BreakHis,
    compute: Compute,
    *,
    stage: str,
    config: str,
    fold: int,
    seed: int,
) -> Record:
    """Train one configuration on one fold into `run` = {record.json, model/}; returns its record."""
    from quintet.breakhis.module import train

    prepared = load(data)
    folds = prepared.folds["fold"].nunique()
    if not 0 <= fold < folds:
        raise InputError(f"fold {fold}: {data} has {folds} folds, numbered from 0; run breakhis_prepare again")
    params = choice.model_dump(include=set(BreakHisConfig.model_fields)) | shared.model_dump(include=set(TRAINING))
    record = new_record("breakhis", stage, config, fold=fold, seed=seed, params=params, inputs={"data": data})
    record = train(prepared, run / "model", choice, shared, compute, record=record)
    record.save(run)
    return record


def evaluate_run(run: Path, data: Path, compute: Compute, *, pictures: bool) -> dict[str, float]:
    """Lock the threshold on the fold's validation patients, measure its test patients, and write `evaluation/`.

    `pictures`: attention, learning curves and Grad-CAM too, which take longer to draw than to compute.
    """
    from quintet.breakhis.cam import draw_cams
    from quintet.breakhis.inference import Model, predict_prepared

    prepared, record = load(data), Record.load(run)
    model = Model.load(run, compute.device, evaluated=False)
    if model.size != (size := prepared.images["40X"].shape[1]):
        raise InputError(f"{run} was trained on images of {model.size} pixels, {data} has {size}; train it again")
    held_out, _, _ = predict_prepared(model, prepared, prepared.patients(record.fold, "valid"))
    model = replace(model, threshold=lock_threshold(prepared.classes(held_out.patients), held_out.whole))
    started = time.monotonic()
    predicted, images, patients = predict_prepared(model, prepared, prepared.patients(record.fold, "test"))
    seconds = time.monotonic() - started
    labels = prepared.classes(predicted.patients)
    metrics = evaluate(
        predicted,
        labels,
        prepared.types(predicted.patients),
        threshold=model.threshold,
        record=record,
        out=run / "evaluation",
        history=pd.read_csv(run / "model" / "history.csv") if pictures else None,
    )
    metrics["evaluation_seconds_per_image"] = seconds / len(predicted.images)
    write_json(run / "evaluation" / "metrics.json", metrics)
    write_json(run / "evaluation" / "inference.json", {"threshold": model.threshold})
    if pictures:
        draw_cams(run / "evaluation" / "figures" / "grad_cam.png", model, predicted, images, patients, labels)
    return metrics


def sweep_cell(out: Path, data: Path, config: str, fold: int, seed: int, shared: BreakHis, compute: Compute) -> dict[str, float]:
    """Train and evaluate one configuration on one fold with one seed into the run folder `out`; returns its metrics."""
    from quintet.training.cells import cell

    def train(run: Path, choice: BreakHisConfig) -> Record:
        return train_run(run, data, choice, shared, compute, stage="breakhis_sweep", config=config, fold=fold, seed=seed)

    return cell(out, shared.configs, config, train, lambda run: evaluate_run(run, data, compute, pictures=False))
