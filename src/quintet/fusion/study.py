"""The study's runs: which parameters make one, and training plus evaluation of a configuration into a run folder."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet import results
from quintet.errors import InputError
from quintet.files import whole_file, whole_folder
from quintet.fusion.baselines import clinical_only
from quintet.fusion.data import Prepared, load
from quintet.fusion.evaluation import CLASSIFICATION, RECORDED, SURVIVAL, headline_of, patient_scores, patterns, summary
from quintet.params import Compute, Fusion, FusionConfig
from quintet.params.fusion import BASELINES
from quintet.runs import Record, new_record

# Shared by every configuration; dvc.yaml lists the same keys for the stages that train (a test compares them).
TRAINING = (
    "survival_loss", "encoder", "width", "clinical_units", "hidden", "heads", "predictor_units", "dropout", "recompute",
    "diffusion",
    "sampling_steps", "samples", "loss_weights", "temperature", "epochs", "batch_size", "precision", "rate", "rate_floor",
    "warmup",
    "weight_decay", "clip_norm", "accumulate", "patience", "augment", "ttt",
)  # fmt: skip
TTT = "-ttt"  # a configuration with test-time training: the same trained weights
Values = NDArray[np.float64]


def train_run(
    run: Path, data: Path, choice: FusionConfig, shared: Fusion, compute: Compute, *, stage: str, config: str, seed: int
) -> Record:  # fmt: skip
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
    found: dict[str, dict[str, tuple[NDArray[Any], ...]]] = {config: {} for config in configs}
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
            own[name] = (chosen, *values)
    tables = {config: _predictions(config, own, prepared, rows, what) for config, own in found.items()}
    whole = prepared.target[rows].astype(float)

    def score(values: Values) -> float:
        return headline_of(pd.DataFrame(values).assign(target=whole[:, 0], event=whole[:, 1]), range(values.shape[1]))

    extra = {}
    if model.adapts:
        extra["imputation"] = model.imputed(patients, of_prepared(model, prepared, prepared.rows("train")))
        if curves:
            extra["curves"] = model.curves(patients, score)
    cost = {config: value / max(1, len(tables[config])) for config, value in seconds.items()}
    return write_evaluation(tables, prepared, record, run / "evaluation", seconds=cost, extra=extra, model=run / "model")


def baseline_runs(out: Path, data: Path, shared: Fusion) -> dict[str, dict[str, float]]:
    """Evaluate the baselines into run folders below `out` (without model/)."""
    prepared = load(data)
    rows = prepared.rows("test")
    what = _patterns(prepared, rows, shared)
    metrics = {}
    for name in BASELINES:
        found = {}
        for pattern, kept in what.items():
            chosen = np.flatnonzero(kept.any(1))
            if len(chosen):
                found[pattern] = (chosen, clinical_only(prepared, rows[chosen], kept[chosen, -1]), np.zeros(len(chosen)))
        record = new_record(
            "fusion", "fusion_baselines", name, seed=0, params={"test_missing": shared.test_missing}, inputs={"data": data}
        )
        run = out / name / "seed0"
        metrics[name] = write_evaluation(
            {name: _predictions(name, found, prepared, rows, what)}, prepared, record, run / "evaluation"
        )
        record.save(run)
    return metrics


def _patterns(data: Prepared, rows: NDArray[np.int64], shared: Fusion) -> dict[str, NDArray[np.bool_]]:
    names = [str(data.table["patient"][row]) for row in rows]
    return patterns(data.modalities, data.present[rows], data.clinical[rows], names, missing=shared.test_missing)


def _predictions(
    config: str, found: Mapping[str, tuple[NDArray[Any], ...]], data: Prepared, rows: NDArray[np.int64],
    what: Mapping[str, NDArray[np.bool_]],
) -> pd.DataFrame:  # fmt: skip
    """One row a patient and pattern: what was used, probabilities or risk, spread over draws, whether it adapted, the patient's
    scores."""
    columns = columns_of(data.classes)
    parts = []
    for pattern, (chosen, values, spread, *adapted) in found.items():
        own = data.target[rows[chosen]].astype(float)
        table = pd.DataFrame(values, columns=columns)
        table.insert(0, "config", config)
        table.insert(1, "pattern", pattern)
        table.insert(2, "patient", data.table["patient"].to_numpy()[rows[chosen]])
        table["modalities"] = ["+".join(np.array(data.modalities)[kept]) for kept in what[pattern][chosen]]
        table = table.assign(target=own[:, 0], event=own[:, 1], spread=spread)
        table["adapted"] = adapted[0].astype(int) if adapted else 0
        parts.append(pd.concat([table, patient_scores(values, own, classes=len(data.classes))], axis=1))
    return pd.concat(parts, ignore_index=True)


def columns_of(classes: Sequence[str]) -> list[str]:
    return [f"probability/{name}" for name in classes] or ["risk"]


def write_evaluation(
    tables: Mapping[str, pd.DataFrame], data: Prepared, record: Record, out: Path, *, seconds: Mapping[str, float] | None = None,
    extra: Mapping[str, pd.DataFrame] | None = None, model: Path | None = None,
) -> dict[str, float]:  # fmt: skip
    """Write `out` = {predictions.csv, cases.csv (a patient's mean score over the subsets), metrics.json, figures/, what `extra`
    holds}; returns the metrics, of the variant with test-time training under `ttt/`."""
    from quintet.fusion import figures

    columns = columns_of(data.classes)
    metric = CLASSIFICATION if data.classes else SURVIVAL
    metrics: dict[str, float] = {}
    tidy = []
    for config, table in tables.items():
        prefix = "ttt/" if config.endswith(TTT) else ""
        metrics |= {f"{prefix}{name}": value for name, value in summary(table, columns).items()}
        if seconds:
            metrics[f"{prefix}seconds_per_prediction"] = seconds[config]
        subsets = table[~table["pattern"].isin(list(_not_subsets(table)))].dropna(subset=[metric])
        mean = subsets.groupby("patient")[metric].mean()
        values = pd.DataFrame({f"{metric}_over_subsets": mean})
        whole = table[table["pattern"] == RECORDED].set_index("patient")
        values[metric] = whole[metric]
        tidy.append(
            results.tidy(
                values, record.study, config, fold=record.fold, seed=record.seed, cases=values.index, groups=values.index
            )
        )
    if len(tables) == 2:
        plain, adapted = tables.values()
        metrics |= harm(plain, adapted, "log_loss" if data.classes else SURVIVAL, lower_is_better=bool(data.classes))
    for row in ((extra or {}).get("imputation", pd.DataFrame())).to_dict("records"):
        name = row.pop("modality")
        metrics |= {f"imputation/{name}/{key}": float(v) for key, v in row.items() if key != "patients"}
    with whole_folder(out) as folder:
        pd.concat(tables.values()).to_csv(folder / "predictions.csv", index=False)
        results.write(pd.concat(tidy, ignore_index=True).dropna(subset="value"), folder / "cases.csv")
        for name, table in (extra or {}).items():
            table.to_csv(folder / f"{name}.csv", index=False)
        with whole_file(folder / "metrics.json") as beside:
            beside.write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
        (folder / "figures").mkdir()
        figures.draw_all(folder / "figures", tables, columns, extra or {}, title=record.name, model=model)
    return metrics


def _not_subsets(table: pd.DataFrame) -> set[str]:
    from quintet.fusion.evaluation import MAR, MCAR

    return {RECORDED, MCAR, MAR} & set(table["pattern"])


def harm(plain: pd.DataFrame, adapted: pd.DataFrame, metric: str, *, lower_is_better: bool) -> dict[str, float]:
    """What test-time training does to patients with everything that is recorded: share that adapted (their loss fell), share
    whose score became worse (harm rate), became better, and the mean change."""
    a, b = (t[t["pattern"] == RECORDED].set_index("patient") for t in (plain, adapted))
    change = (b[metric] - a[metric]) * (1 if lower_is_better else -1)
    return {
        "ttt/adapted_rate": float(b["adapted"].mean()), "ttt/harm_rate": float((change > 1e-9).mean()),
        "ttt/help_rate": float((change < -1e-9).mean()), f"ttt/change_of_{metric}": float((b[metric] - a[metric]).mean()),
    }  # fmt: skip


def sweep_cell(out: Path, data: Path, config: str, seed: int, shared: Fusion, compute: Compute) -> dict[str, float]:
    """Train and evaluate one configuration with one seed into the run folder `out`; returns its metrics."""
    from quintet.training.cells import cell

    if config not in shared.configs:
        raise InputError(f"--config {config}: no such configuration; there are {', '.join(shared.configs)}")

    def train(run: Path) -> Record:
        return train_run(run, data, shared.configs[config], shared, compute, stage="fusion_sweep", config=config, seed=seed)

    return cell(out, train, lambda run: evaluate_run(run, data, shared, compute, curves=False))
