"""Predictions for patients, and their metrics. Importing it does not import torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    recall_score,
    roc_auc_score,
)

from quintet.calibration import expected_calibration_error

Floats = NDArray[np.float64]
MAX_TEMPERATURE = 20.0  # and its inverse
EPSILON = 1e-6  # probabilities of 0 and 1 would have an infinite log loss


def subsets(magnifications: Sequence[str]) -> list[str]:
    """All non-empty subsets, small ones first: 40X, ..., 40X+100X, ..., all."""
    return ["+".join(s) for size in range(1, len(magnifications) + 1) for s in combinations(magnifications, size)]


@dataclass(frozen=True)
class Predicted:
    """Predictions for P patients. Probabilities are of malignant; NaN if a patient has no image at the magnifications."""

    patients: list[str]
    magnifications: list[str]
    probability: dict[str, Floats]  # subset of magnifications -> [P]
    types: Floats  # probabilities [P, 8]
    images: pd.DataFrame  # patient, magnification, row, probability (from this image alone)
    importance: Floats | None = None  # [P, M]
    hierarchy: Floats | None = None  # attention weights [M, M] (query, key), means over patients
    fusion: Floats | None = None  # likewise

    @property
    def malignant(self) -> Floats:
        """The probability from all magnifications, `[P]`."""
        return self.probability["+".join(self.magnifications)]


def mean_prediction(predicted: Sequence[Predicted]) -> Predicted:
    """The mean prediction of several models for the same patients and magnifications."""
    first = predicted[0]
    images = first.images.assign(probability=np.mean([p.images["probability"] for p in predicted], axis=0))
    weights = [p.importance for p in predicted if p.importance is not None]
    return Predicted(
        first.patients,
        first.magnifications,
        {name: np.mean([p.probability[name] for p in predicted], axis=0) for name in first.probability},
        np.mean([p.types for p in predicted], axis=0),
        images,
        np.mean(weights, axis=0) if weights else None,
    )


def fit_temperature(labels: NDArray[np.int64], probability_at: Callable[[float], Floats]) -> float:
    """The temperature in MAX_TEMPERATURE's range at which the patients' probabilities have the smallest log loss (temperature
    scaling, Guo et al. 2017, arXiv 1706.04599).

    `probability_at(temperature)`: `[P]`. The targets are Platt's (n + 1) / (n + 2) and 1 / (n + 2) of the n patients of a class,
    because few patients may be separated without error, where the best temperature would be 0 and one wrong test patient ruinous.
    """
    counts = np.bincount(labels, minlength=2)
    targets = np.where(labels == 1, (counts[1] + 1) / (counts[1] + 2), 1 / (counts[0] + 2))

    def loss(log_temperature: float) -> float:
        p = probability_at(float(np.exp(log_temperature)))
        return float(-(targets * np.log(p + EPSILON) + (1 - targets) * np.log(1 - p + EPSILON)).mean())

    limit = np.log(MAX_TEMPERATURE)
    return float(np.exp(minimize_scalar(loss, bounds=(-limit, limit), method="bounded", options={"xatol": 1e-4}).x))


def choose_threshold(labels: NDArray[np.int64], probability: Floats) -> float:
    """The threshold with the highest balanced accuracy; among ties, the one nearest to 0.5."""
    values = np.unique(probability)
    candidates = np.unique([0.5, *((values[1:] + values[:-1]) / 2)])
    scores = np.array([balanced_accuracy_score(labels, probability >= t) for t in candidates])
    best = candidates[scores >= scores.max() - 1e-12]
    return float(best[np.abs(best - 0.5).argmin()])


def log_losses(labels: NDArray[Any], probability: Floats) -> Floats:
    """The log loss of each patient."""
    return -np.log(np.clip(np.where(labels == 1, probability, 1 - probability), EPSILON, 1))


def classification(labels: NDArray[Any], probability: Floats, threshold: float) -> dict[str, float]:
    """Scores of a two-class decision; without those that need both classes if one is missing."""
    labels, malignant = np.asarray(labels).astype(int), (probability >= threshold).astype(int)
    both = len(np.unique(labels)) == 2
    scores = {"accuracy": accuracy_score(labels, malignant)}
    if both:
        scores["balanced_accuracy"] = balanced_accuracy_score(labels, malignant)
    scores |= {
        "f1": f1_score(labels, malignant, zero_division=0),
        "brier": ((probability - labels) ** 2).mean(),
        "log_loss": log_losses(labels, probability).mean(),
        "ece": expected_calibration_error(labels, probability),
    }
    if both:
        scores |= {
            "sensitivity": recall_score(labels, malignant),
            "specificity": recall_score(labels, malignant, pos_label=0),
            "auc": roc_auc_score(labels, probability),
            "average_precision": average_precision_score(labels, probability),
        }
    return {name: float(value) for name, value in scores.items() if np.isfinite(value)}
