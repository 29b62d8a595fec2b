"""What a model says about patients, and how good that is. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

Floats = NDArray[np.float64]
BINS = 10  # of the reliability curve and the calibration error


def subsets(magnifications: Sequence[str]) -> list[str]:
    """All non-empty subsets, small ones first: 40X, ..., 40X+100X, ..., all."""
    return ["+".join(s) for size in range(1, len(magnifications) + 1) for s in combinations(magnifications, size)]


@dataclass(frozen=True)
class Predicted:
    """What a model says about P patients. Probabilities are of malignant; NaN where a patient has none of the magnifications."""

    patients: list[str]
    magnifications: list[str]
    probability: dict[str, Floats]  # subset of magnifications -> [P]
    types: Floats  # [P, 8]
    images: pd.DataFrame  # patient, magnification, row, probability (of each image alone)
    importance: Floats | None = None  # [P, M]; the attention modules' weights
    hierarchy: Floats | None = None  # [M, M], means
    fusion: Floats | None = None

    @property
    def whole(self) -> Floats:
        return self.probability["+".join(self.magnifications)]


def mean_of(predicted: Sequence[Predicted]) -> Predicted:
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


def lock_threshold(labels: NDArray[np.int64], probability: Floats) -> float:
    """The threshold with the highest balanced accuracy; of several the one nearest to 0.5."""
    values = np.unique(probability)
    candidates = np.unique([0.5, *((values[1:] + values[:-1]) / 2)])
    scores = np.array([balanced_accuracy(labels, probability >= t) for t in candidates])
    best = candidates[scores >= scores.max() - 1e-12]
    return float(best[np.abs(best - 0.5).argmin()])


def balanced_accuracy(labels: NDArray[Any], malignant: NDArray[np.bool_]) -> float:
    """Mean of the recalls of both classes; NaN where one has no patient."""
    return float(np.mean([(malignant[labels == k] == k).mean() if (labels == k).any() else np.nan for k in (0, 1)]))


def reliability(labels: NDArray[Any], probability: Floats) -> pd.DataFrame:
    """Per bin of the probability that is not empty: mean probability, share of malignant, number."""
    bins = np.minimum((probability * BINS).astype(int), BINS - 1)
    table = pd.DataFrame({"bin": bins, "predicted": probability, "observed": labels})
    return table.groupby("bin").agg(predicted=("predicted", "mean"), observed=("observed", "mean"), count=("bin", "size"))


def classification(labels: NDArray[Any], probability: Floats, threshold: float) -> dict[str, float]:
    """Scores of a two-class decision; those that need both classes are left out where one is missing."""
    malignant = probability >= threshold
    tp, fp = int((malignant & (labels == 1)).sum()), int((malignant & (labels == 0)).sum())
    fn = int((labels == 1).sum()) - tp
    curve = reliability(labels, probability)
    gaps = (curve["predicted"] - curve["observed"]).abs() * curve["count"]
    found = {
        "accuracy": float((malignant == labels).mean()),
        "balanced_accuracy": balanced_accuracy(labels, malignant),
        "f1": 2 * tp / max(1, 2 * tp + fp + fn),
        "brier": float(((probability - labels) ** 2).mean()),
        "ece": float(gaps.sum() / len(labels)),  # expected calibration error, bins of equal width
    }
    if len(set(labels.tolist())) == 2:
        found |= {
            "sensitivity": float(malignant[labels == 1].mean()),
            "specificity": float((~malignant[labels == 0]).mean()),
            "auc": float(roc_auc_score(labels, probability)),
            "average_precision": float(average_precision_score(labels, probability)),
        }
    return {name: value for name, value in found.items() if np.isfinite(value)}
