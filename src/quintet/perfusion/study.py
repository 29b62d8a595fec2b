"""The study's runs: which parameters make one, and training plus evaluation of a configuration into a run folder."""

import time
from pathlib import Path

import pandas as pd

from quintet.errors import InputError
from quintet.files import write_json
from quintet.params import Compute, Perfusion, PerfusionConfig
from quintet.perfusion.data import load
from quintet.perfusion.evaluation import evaluate
from quintet.runs import Record, new_record

# Shared by every configuration; dvc.yaml lists the same keys for the stages that train (a test compares them).
TRAINING = (
    "epochs",
    "iterations",
    "batch_size",
    "patch",
    "features",
    "deep_supervision",
    "attention_tokens",
    "precision",
    "rate",
    "momentum",
    "weight_decay",
    "clip_norm",
    "accumulate",
    "oversample_foreground",
    "loss_weights",
    "augment",
)
EVALUATION = ("mirror_average",)


def train_run(
    run: Path,
    data: Path,
    choice: PerfusionConfig,
    shared: Perfusion,
    compute: Compute,
    *,
    stage: str,
    config: str,
    fold: int,
    seed: int,
) -> Record:
    """Train one configuration on one fold into `run` = {record.json, model/}; returns its record."""
    from quintet.perfusion.module import train

    prepared = load(data)
    if not 0 <= fold < len(prepared.folds):
        raise InputError(f"fold {fold}: {data} has {len(prepared.folds)} folds, numbered from 0; run perfusion_prepare again")
    fields = set(PerfusionConfig.model_fields)
    params = choice.model_dump(include=fields) | shared.model_dump(include=set(TRAINING))
    record = new_record("perfusion", stage, config, fold=fold, seed=seed, params=params, inputs={"data": data})
    record = train(prepared, run / "model", choice, shared, compute, record=record)
    record.save(run)
    return record


def evaluate_run(run: Path, data: Path, shared: Perfusion, compute: Compute) -> dict[str, float]:
    """Predict the held-out cases of the run's fold and write its `evaluation/`."""
    from quintet.perfusion.inference import Model, predict_prepared

    prepared, record = load(data), Record.load(run)
    settings = shared.model_dump(include=set(EVALUATION))
    model = Model.load(run, compute.device, **settings)
    cases = prepared.part(record.fold, "val")
    started = time.monotonic()
    metrics = evaluate(
        predict_prepared(model, prepared, cases),
        record=record,
        out=run / "evaluation",
        history=pd.read_csv(run / "model" / "history.csv"),
        save_probabilities=shared.save_probabilities,
    )
    metrics["evaluation_seconds_per_case"] = (time.monotonic() - started) / len(cases)
    write_json(run / "evaluation" / "metrics.json", metrics)
    write_json(run / "evaluation" / "settings.json", settings)
    return metrics


def sweep_cell(out: Path, data: Path, config: str, fold: int, seed: int, shared: Perfusion, compute: Compute) -> dict[str, float]:
    """Train and evaluate one configuration on one fold with one seed into the run folder `out`; returns its metrics."""
    from quintet.training.cells import cell

    def train(run: Path, choice: PerfusionConfig) -> Record:
        return train_run(run, data, choice, shared, compute, stage="perfusion_sweep", config=config, fold=fold, seed=seed)

    return cell(out, shared.configs, config, train, lambda run: evaluate_run(run, data, shared, compute))
