"""Jackknife pseudo-values: for scores of patients that depend on the other patients."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def pseudo_values(value: float, without: Floats) -> Floats:
    """Pseudo-values `[patients]` of a statistic, from its `value` and those `without` each patient: their mean is the value, and
    their variance divided by the number of patients estimates the statistic's, on average not too low (Efron and Stein 1981,
    doi:10.1214/aos/1176345462)."""
    return np.asarray(value + (len(without) - 1) * (without.mean() - without))
