"""The study's runs: which parameters make one, and training plus evaluation of a configuration into a run folder."""

import time
from pathlib import Path

import numpy as np

from quintet.ct.baselines import BASELINES
from quintet.ct.data import load
from quintet.ct.evaluation import evaluate, read_vectors, scans_of
from quintet.ct.metrics import cosine
from quintet.errors import InputError
from quintet.files import write_json
from quintet.params import Compute, Ct, CtConfig
from quintet.runs import Record, new_record

# Shared by every configuration; dvc.yaml lists the same keys for the stages that train (a test compares them).
TRAINING = (
    "window",
    "input_size",
    "weights",
    "width",
    "units",
    "embedding",
    "dropout",
    "chunk",
    "centre",
    "epochs",
    "batch_size",
    "classes",
    "samples",
    "precision",
    "rate",
    "schedule",
    "rate_floor",
    "warmup",
    "step_epochs",
    "step_factor",
    "weight_decay",
    "clip_norm",
    "accumulate",
    "patience",
    "f1_average",
    "f1_smooth",
    "cross_entropy",
    "margin",
    "augment",
    "neighbours",
)


def train_run(
    run: Path, data: Path, choice: CtConfig, shared: Ct, compute: Compute, *, stage: str, config: str, seed: int
) -> Record:
    """Train one configuration into `run` = {record.json, model/}; returns its record."""
    from quintet.ct.module import train

    params = choice.model_dump(include=set(CtConfig.model_fields)) | shared.model_dump(include=set(TRAINING))
    record = new_record("ct", stage, config, seed=seed, params=params, inputs={"data": data})
    record = train(load(data), run / "model", choice, shared, compute, record=record)
    record.save(run)
    return record


def evaluate_run(run: Path, data: Path, shared: Ct, compute: Compute) -> dict[str, float]:
    """Embed the test scans, measure how they retrieve each other, and write the run's `evaluation/`."""
    from quintet.ct.inference import Model

    prepared, record = load(data), Record.load(run)
    model = Model.load(run, compute.device)
    if model.size != prepared.volumes.shape[1]:
        raise InputError(f"{run} was trained on cubes of {model.size}, {data} has {prepared.volumes.shape[1]}; train it again")
    rows = prepared.rows("test")
    started = time.monotonic()
    found = model(prepared.volumes, rows)
    seconds = time.monotonic() - started
    metrics = evaluate(
        cosine(found.vectors),
        scans_of(prepared, rows),
        neighbours=shared.neighbours,
        record=record,
        out=run / "evaluation",
        probability=found.probability,
        vectors=found.vectors,
        model=run / "model",
    )
    metrics["evaluation_seconds_per_scan"] = seconds / len(rows)
    write_json(run / "evaluation" / "metrics.json", metrics)
    return metrics


def baseline_runs(out: Path, data: Path, shared: Ct) -> dict[str, dict[str, float]]:
    """Evaluate the baselines, and the embeddings from elsewhere that params name, into run folders below `out` (without
    model/)."""
    prepared = load(data)
    rows = prepared.rows("test")
    scans = scans_of(prepared, rows)
    metrics = {}
    for name in (*BASELINES, *shared.external):
        inputs, vectors = {"data": data}, None
        if name in shared.external:
            vectors = read_vectors(Path(shared.external[name]), scans.names)
            inputs["embeddings"] = Path(shared.external[name])
        record = new_record("ct", "ct_baselines", name, seed=0, params={"neighbours": shared.neighbours}, inputs=inputs)
        similarity = np.asarray(BASELINES[name](prepared, rows)) if vectors is None else cosine(vectors)
        run = out / name / "seed0"
        metrics[name] = evaluate(
            similarity,
            scans,
            neighbours=shared.neighbours,
            record=record,
            out=run / "evaluation",
            vectors=vectors,
            hubs=name not in ("random", "prior"),
        )
        record.save(run)
    return metrics


def sweep_cell(out: Path, data: Path, config: str, seed: int, shared: Ct, compute: Compute) -> dict[str, float]:
    """Train and evaluate one configuration with one seed into the run folder `out`; returns its metrics."""
    from quintet.training.cells import cell

    def train(run: Path, choice: CtConfig) -> Record:
        return train_run(run, data, choice, shared, compute, stage="ct_sweep", config=config, seed=seed)

    return cell(out, shared.configs, config, train, lambda run: evaluate_run(run, data, shared, compute))
