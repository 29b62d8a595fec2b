"""From probabilities to scores by patient, by magnification and by image: tidy table, metrics, figures.

Importing it does not import torch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet import results
from quintet.breakhis.data.classes import case_number
from quintet.breakhis.evaluation import figures
from quintet.breakhis.evaluation.metrics import Floats, Predicted, classification, log_losses
from quintet.runs import Record


def score_decisions(patients: Sequence[str], labels: NDArray[np.int64], p: Floats, threshold: float) -> pd.DataFrame:
    """One row per patient: class, probability of malignant, whether the decision is correct, and the proper scores."""
    return pd.DataFrame(
        {
            "patient": patients,
            "malignant": labels,
            "probability": p,
            "correct": ((p >= threshold) == labels).astype(float),
            "brier": (p - labels) ** 2,
            "log_loss": log_losses(labels, p),
        }
    )


def write_cases(table: pd.DataFrame, record: Record, out: Path) -> None:
    """Write one row per patient and score as the tidy table `out`/cases.csv; groups are biopsies, patients slides."""
    tidy = results.to_tidy(
        table.drop(columns="patient"),
        record.study,
        record.config,
        fold=record.fold,
        seed=record.seed,
        cases=table["patient"],
        groups=table["patient"].map(case_number),
    )
    results.write(tidy.dropna(subset="value").reset_index(drop=True), out / "cases.csv")


def score_patients(
    predicted: Predicted, labels: NDArray[np.int64], types: NDArray[np.floating[Any]], images: pd.DataFrame, threshold: float
) -> pd.DataFrame:
    """The scores of each patient, its type, and whether the decision from each subset of magnifications is correct;
    `recognition/...` is the share of its images of a magnification (`images`: of `score_images`) that are correct."""
    table = score_decisions(predicted.patients, labels, predicted.malignant, threshold)
    # for a patient whose images are of two types, both count as correct
    table["type_correct"] = (types[np.arange(len(labels)), predicted.types.argmax(1)] > 0).astype(float)
    for name, subset_p in predicted.probability.items():
        table[f"correct/{name}"] = np.where(np.isnan(subset_p), np.nan, (subset_p >= threshold) == labels)
    shares = images.groupby(["patient", "magnification"])["correct"].mean().unstack()
    for m in predicted.magnifications:
        table[f"recognition/{m}"] = shares[m].reindex(predicted.patients).to_numpy() if m in shares else np.nan
    return table


def score_images(predicted: Predicted, labels: NDArray[np.int64], threshold: float) -> pd.DataFrame:
    """One row per image, classified by itself: its patient's class and whether the decision is correct."""
    malignant = predicted.images["patient"].map(dict(zip(predicted.patients, labels, strict=True)))
    correct = (predicted.images["probability"] >= threshold) == malignant
    return predicted.images.assign(malignant=malignant, correct=correct.astype(float))


def summary(table: pd.DataFrame, images: pd.DataFrame, threshold: float) -> dict[str, float]:
    """Metrics by patient, by magnification (patient recognition rate: the mean over patients of the share of correct images,
    Spanhol et al. 2016), by image, and by subset of magnifications."""
    labels = table["malignant"].to_numpy()
    metrics = classification(labels, table["probability"].to_numpy(), threshold)
    metrics |= {"type_accuracy": table["type_correct"].mean(), "threshold": threshold, "patients": len(table)}
    for name in table.filter(like="recognition/"):
        metrics[f"patient_recognition_rate/{name.partition('/')[2]}"] = table[name].mean()
    for m, rows in images.groupby("magnification"):
        metrics[f"image_accuracy/{m}"] = rows["correct"].mean()
    for name in table.filter(like="correct/"):
        rows = table[table[name].notna()]
        if rows["malignant"].nunique() == 2:
            metrics[f"balanced_accuracy/{name.partition('/')[2]}"] = rows.groupby("malignant")[name].mean().mean()
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
    """Score P patients (`labels` `[P]`: 0 benign, 1 malignant; `types` `[P, 8]`: shares of their images) at a threshold; returns
    the metrics and writes cases.csv, images.csv and figures/ into `out`; with `history`, more figures."""
    images = score_images(predicted, labels, threshold)
    table = score_patients(predicted, labels, types, images, threshold)
    write_cases(table, record, out)
    images.drop(columns="row").round(6).to_csv(out / "images.csv", index=False)
    (out / "figures").mkdir()
    figures.plot_all(out / "figures", predicted, table, types, threshold=threshold, title=record.name, history=history)
    return summary(table, images, threshold)
