"""How well predicted probabilities agree with what is observed, in bins of equal width."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

BINS = 10
Floats = NDArray[np.float64]


def reliability(observed: NDArray[Any], predicted: Floats) -> pd.DataFrame:
    """Mean probability, share of cases in which the event (0 or 1) was observed, and count, of each non-empty bin of the
    `predicted` probability `[N]`.

    scikit-learn's calibration_curve closes its bins on the right instead of the left and has no counts.
    """
    if np.isnan(predicted).any():
        raise ValueError("a probability is missing")
    bins = np.minimum((predicted * BINS).astype(int), BINS - 1)
    table = pd.DataFrame({"bin": bins, "predicted": predicted, "observed": observed})
    return table.groupby("bin").agg(predicted=("predicted", "mean"), observed=("observed", "mean"), count=("bin", "size"))


def expected_calibration_error(observed: NDArray[Any], predicted: Floats) -> float:
    """The mean gap between probability and share over the bins, weighted by their counts (Guo et al. 2017, arXiv 1706.04599)."""
    curve = reliability(observed, predicted)
    return float(((curve["predicted"] - curve["observed"]).abs() * curve["count"]).sum() / curve["count"].sum())
