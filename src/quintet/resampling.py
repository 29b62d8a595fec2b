"""Bootstrap intervals clustered by patient: all rows of a patient are drawn together. A draw is represented by row weights."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
DRAWS = 2000
PERCENTILES = (2.5, 97.5)


def bootstrap_weights(groups: ArrayLike, strata: ArrayLike | None = None, *, draws: int = DRAWS) -> Floats:
    """Row weights `[draws, rows]`: how often each row's group (patient) is drawn, with replacement.

    `groups` and `strata` have one entry per row; with `strata`, groups are drawn within their stratum.
    """
    names, first_rows, group_of_row = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
    stratum_of_group = np.zeros(len(names)) if strata is None else np.asarray(strata)[first_rows]
    rng = np.random.default_rng(0)
    counts = np.zeros((draws, len(names)))
    for stratum in np.unique(stratum_of_group):
        members = np.flatnonzero(stratum_of_group == stratum)
        counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=draws)
    return counts[:, group_of_row.ravel()]


def bootstrap_means(values: Floats, weights: Floats) -> Floats:
    """The weighted mean of `values` `[rows]` in each draw; NaN in a draw without any of the rows."""
    return _share(weights @ values, weights.sum(1))


def bootstrap_concordance(score: Floats, comparable: NDArray[np.bool_], weights: Floats) -> Floats:
    """In each draw, the share of `comparable` `[rows, rows]` pairs (i, j) with score i above score j; ties count half.

    This is the AUC if i is positive and j negative, and the concordance index if j survived longer than i. NaN in a draw without
    a comparable pair.
    """
    concordant = ((score[:, None] > score[None, :]) + 0.5 * (score[:, None] == score[None, :])) * comparable
    return _share(((weights @ concordant) * weights).sum(1), ((weights @ comparable) * weights).sum(1))


def _share(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def percentile_interval(draws: Floats) -> tuple[float, float]:
    """The central 95 % of the `draws` in which the statistic is defined; NaN if it is in none."""
    defined = draws[~np.isnan(draws)]
    low, high = np.percentile(defined, PERCENTILES) if len(defined) else (np.nan, np.nan)
    return float(low), float(high)
