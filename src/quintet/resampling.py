"""Intervals by drawing patients again: a patient's cases go together. What one draw means is a weight for each row."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
DRAWS = 2000
PERCENTILES = (2.5, 97.5)


def bootstrap_weights(groups: ArrayLike, strata: ArrayLike | None = None, *, draws: int = DRAWS) -> Floats:
    """How often each row counts `[draws, rows]` when groups (patients) are drawn with replacement, within their stratum where one
    is given for each row."""
    names, first, own = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
    kinds = np.zeros(len(names)) if strata is None else np.asarray(strata)[first]
    rng = np.random.default_rng(0)
    times = np.zeros((draws, len(names)))
    for kind in np.unique(kinds):
        members = np.flatnonzero(kinds == kind)
        times[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=draws)
    return times[:, own.ravel()]


def bootstrap_means(values: Floats, weights: Floats) -> Floats:
    """The weighted mean of `values` `[rows]` in each draw."""
    return np.asarray((weights @ values) / weights.sum(1))


def bootstrap_concordance(score: Floats, comparable: NDArray[np.bool_], weights: Floats) -> Floats:
    """The share of comparable pairs (i, j) with score i above score j, ties counting half, in each draw: the AUC where i is of
    the one class and j of the other, the concordance index where j outlived i."""
    right = ((score[:, None] > score[None, :]) + 0.5 * (score[:, None] == score[None, :])) * comparable
    return np.asarray(((weights @ right) * weights).sum(1) / np.maximum(((weights @ comparable) * weights).sum(1), 1e-12))


def percentile_interval(draws: Floats) -> tuple[float, float]:
    """95 % interval."""
    low, high = np.percentile(draws, PERCENTILES)
    return float(low), float(high)
