"""From probabilities to scores by patient, by magnification and by image: tidy table, metrics, figures. No torch here."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet import results
from quintet.breakhis.metrics import Predicted, classification
from quintet.files import atomic_folder, write_json
from quintet.runs import Record


def by_patient(
    predicted: Predicted, labels: NDArray[np.int64], types: NDArray[np.floating[Any]], threshold: float
) -> pd.DataFrame:
    """One row a patient: class, probability, correct, and the same for each subset of magnifications; the share of correct images
    of each magnification, each image alone (the data set's patient score)."""
    whole = predicted.whole
    table = pd.DataFrame({"patient": predicted.patients, "malignant": labels, "probability": whole})
    table["correct"] = ((whole >= threshold) == labels).astype(float)
    table["brier"] = (whole - labels) ** 2
    # a patient whose images are of two types is right with either
    table["type_correct"] = (types[np.arange(len(labels)), predicted.types.argmax(1)] > 0).astype(float)
    for name, p in predicted.probability.items():
        table[f"correct/{name}"] = np.where(np.isnan(p), np.nan, (p >= threshold) == labels)
    images = _judged(predicted, labels, threshold)
    shares = images.groupby(["patient", "magnification"])["correct"].mean().unstack()
    for m in predicted.magnifications:
        table[f"recognition/{m}"] = shares[m].reindex(predicted.patients).to_numpy() if m in shares else np.nan
    return table


def _judged(predicted: Predicted, labels: NDArray[np.int64], threshold: float) -> pd.DataFrame:
    own = predicted.images["patient"].map(dict(zip(predicted.patients, labels, strict=True)))
    right = (predicted.images["probability"] >= threshold) == own
    return predicted.images.assign(malignant=own, correct=right.astype(float))


def summary(table: pd.DataFrame, images: pd.DataFrame, threshold: float) -> dict[str, float]:
    """By patient; by magnification (patient recognition rate: the mean over patients of the share of correct images, Spanhol et
    al. 2016); by image; by subset of magnifications."""
    labels = table["malignant"].to_numpy()
    metrics = classification(labels, table["probability"].to_numpy(), threshold)
    metrics |= {"type_accuracy": table["type_correct"].mean(), "threshold": threshold, "patients": len(table)}
    for name in table.filter(like="recognition/"):
        metrics[f"patient_recognition_rate/{name.partition('/')[2]}"] = table[name].mean()
    for m, own in images.groupby("magnification"):
        metrics[f"image_accuracy/{m}"] = own["correct"].mean()
    for name in table.filter(like="correct/"):
        own = table[table[name].notna()]
        if own["malignant"].nunique() == 2:
            metrics[f"balanced_accuracy/{name.partition('/')[2]}"] = own.groupby("malignant")[name].mean().mean()
    return {name: float(value) for name, value in metrics.items() if np.isfinite(value)}


def evaluate(
    predicted: Predicted,
    labels: NDArray[np.int64],
    types: NDArray[np.floating[Any]],
    *,
    threshold: float,
    record: Record,
    out: Path,
    history: pd.DataFrame | None = None,
) -> dict[str, float]:
    """Measure P patients (`labels` 0 benign, 1 malignant; `types` `[P, 8]` shares); writes `out` = {cases.csv, images.csv,
    metrics.json, figures/}, with `history` more figures."""
    from quintet.breakhis import figures

    table = by_patient(predicted, labels, types, threshold)
    images = _judged(predicted, labels, threshold)
    metrics = summary(table, images, threshold)
    with atomic_folder(out) as folder:
        values = table.drop(columns="patient")
        tidy = results.tidy(
            values,
            record.study,
            record.config,
            fold=record.fold,
            seed=record.seed,
            cases=table["patient"],
            groups=table["patient"],
        )
        results.write(tidy.dropna(subset="value").reset_index(drop=True), folder / "cases.csv")
        images.drop(columns="row").round(6).to_csv(folder / "images.csv", index=False)
        write_json(folder / "metrics.json", metrics)
        (folder / "figures").mkdir()
        figures.draw_all(folder / "figures", predicted, table, types, threshold=threshold, title=record.name, history=history)
    return metrics
