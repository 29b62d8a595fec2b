"""The study's runs: which parameters make one, and training plus evaluation of a configuration into a run folder."""

import shutil
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from quintet.files import write_json
from quintet.landmarks.baselines import BASELINES, predict
from quintet.landmarks.data import load
from quintet.landmarks.evaluation import Calibration, evaluate
from quintet.params import Compute, Landmarks, LandmarksChoice
from quintet.runs import Record, new_record

# Shared by every configuration; dvc.yaml lists the same keys for the stages that train (a test compares them).
TRAINING = (
    "weights",
    "width",
    "dropout",
    "units",
    "wing_omega",
    "wing_epsilon",
    "loss_weights",
    "batch_size",
    "precision",
    "weight_decay",
    "rate_floor",
    "warmup",
    "clip_norm",
    "accumulate",
    "patience",
    "augment",
)
EVALUATION = ("mirror_average", "template")


def train_run(
    run: Path,
    data: Path,
    choice: LandmarksChoice,
    shared: Landmarks,
    compute: Compute,
    *,
    stage: str,
    config: str,
    seed: int,
    start: Path | None,
) -> Record:
    """Train one configuration into `run` = {record.json, model/}; returns its record."""
    from quintet.landmarks.module import train

    fields = list(LandmarksChoice.model_fields)
    params = choice.model_dump(include=set(fields)) | shared.model_dump(include=set(TRAINING))
    inputs = {"data": data} | ({"start": start / "model" / "model.pt"} if start else {})
    record = new_record("landmarks", stage, config, seed=seed, params=params, inputs=inputs)
    record = train(load(data), run / "model", choice, shared, compute, record=record, start=start)
    record.save(run)
    return record


def evaluate_run(run: Path, data: Path, shared: Landmarks, compute: Compute, *, all_figures: bool) -> dict[str, float]:
    """Calibrate a trained run on validation, predict test once, and write the run's `evaluation/`."""
    from quintet.landmarks.inference import Model

    prepared, record = load(data), Record.load(run)
    settings = shared.model_dump(include=set(EVALUATION))
    model = Model.load(run, compute.device, **settings)
    valid, test = prepared.rows("valid"), prepared.rows("test")
    calibration = Calibration.fit(model(prepared.images[valid]), prepared.points[valid])
    history = pd.read_csv(run / "model" / "history.csv")
    predicted = model(prepared.images[test])
    metrics = evaluate(
        prepared,
        test,
        predicted.points,
        calibration(predicted.signs),
        record=record,
        out=run / "evaluation",
        all_figures=all_figures,
        history=history,
    )
    write_json(run / "evaluation" / "inference.json", settings | {"calibration": asdict(calibration)})
    write_json(run / "evaluation" / "settings.json", settings)
    return metrics


def baseline_runs(out: Path, data: Path, shared: Landmarks) -> dict[str, dict[str, float]]:
    """Fit and evaluate the baselines into run folders below `out` (without model/)."""
    prepared = load(data)
    valid, test = prepared.rows("valid"), prepared.rows("test")
    params, metrics = shared.baselines.model_dump(), {}
    for name in BASELINES:
        record = new_record("landmarks", "landmarks_baselines", name, seed=0, params=params, inputs={"data": data})
        fitted = BASELINES[name](prepared, shared.baselines)
        calibration = Calibration.fit(predict(fitted, valid), prepared.points[valid])
        predicted = predict(fitted, test)
        run = out / name / "seed0"
        metrics[name] = evaluate(
            prepared, test, predicted.points, calibration(predicted.signs), record=record, out=run / "evaluation"
        )
        record.save(run)
    return metrics


def sweep_cell(out: Path, data: Path, after: Path, config: str, shared: Landmarks, compute: Compute) -> dict[str, float]:
    """Train and evaluate one configuration with each seed of the sweep, into `out`/seed<n>; returns the mean of the metrics."""
    from quintet.training.fit import delete_resume_checkpoints

    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    records, metrics = [], []
    for seed in shared.sweep.seeds:
        run = part / f"seed{seed}"
        start = after / f"seed{seed}" if after != data else None
        records.append(
            train_run(
                run, data, shared.configs[config], shared, compute, stage="landmarks_sweep", config=config, seed=seed, start=start
            )
        )
        metrics.append(evaluate_run(run, data, shared, compute, all_figures=False))
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)
    for record in records:
        delete_resume_checkpoints(record)
    return pd.DataFrame(metrics).mean().to_dict()
