"""AUC and concordance index of predictions, as a share of comparable pairs of patients in the right order.

Both come from one function, which the bootstrap uses as well. torchsurv's ConcordanceIndex gives the same value only if no two
times are equal: it also compares an event with a patient who was censored at the same time.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet.resampling import bootstrap_concordance

Floats = NDArray[np.float64]
Comparable = NDArray[np.bool_]  # [P, P]: should the first patient have a higher score than the second?


def auc_or_concordance(scores: NDArray[np.floating[Any]], target: NDArray[np.floating[Any]]) -> float:
    """Of class scores `[P, classes]` the AUC (several classes: the mean of each class against the rest), of risks `[P, 1]` the
    concordance index. `target` `[P, 2]`: class and 1, or time and event."""
    ones = np.ones((1, len(target)))
    return float(np.mean([bootstrap_concordance(s, pairs, ones)[0] for s, pairs in comparable_pairs(scores, target)]))


def comparable_pairs(scores: NDArray[np.floating[Any]], target: NDArray[np.floating[Any]]) -> list[tuple[Floats, Comparable]]:
    """For each class (or the risk) a score `[P]` and the pairs of patients that it should put in order."""
    if scores.shape[1] == 1:
        time, event = target[:, 0], target[:, 1] > 0
        return [(scores[:, 0].astype(float), event[:, None] & (time[:, None] < time[None, :]))]
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    classes = range(1, 2) if scores.shape[1] == 2 else range(scores.shape[1])
    true = target[:, 0]
    return [(p[:, k].astype(float), (true[:, None] == k) & (true[None, :] != k)) for k in classes]


def scores_and_target(predictions: pd.DataFrame, columns: Sequence[Any]) -> tuple[Floats, Floats]:
    """Scores `[P, outputs]`, the logarithm of probabilities, and target `[P, 2]` of a table of predictions."""
    values = predictions[list(columns)].to_numpy(float)
    scores = np.log(np.clip(values, 1e-12, 1)) if len(columns) > 1 else values
    return scores, predictions[["target", "event"]].to_numpy(float)


def auc_or_concordance_of(predictions: pd.DataFrame, columns: Sequence[Any]) -> float:
    """AUC or concordance index of a table of predictions; NaN if no pair of patients is comparable."""
    scores, target = scores_and_target(predictions, columns)
    if not all(pairs.any() for _, pairs in comparable_pairs(scores, target)):
        return float("nan")
    return auc_or_concordance(scores, target)
