"""Which modalities each patient is predicted from."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quintet.fusion.data.prepared import Prepared

RECORDED, MCAR, MAR = NOT_SUBSETS = ("recorded", "at random", "by clinical features")
SEED = 20240
Bools = NDArray[np.bool_]


def patterns(
    modalities: Sequence[str], present: Bools, clinical: NDArray[np.floating[Any]], names: Sequence[str], *, missing: float
) -> dict[str, Bools]:
    """The modalities that each patient is predicted from, `[P, K]`, by pattern; a patient without any is not part of the pattern.

    The patterns are every non-empty subset of the modalities, for the patients who have all of it; `recorded`, all modalities of
    each patient; and two that mask a share `missing` of these. MCAR masks completely at random; MAR masks more often the higher
    a patient's clinical features are (mean standardised value), but never masks the clinical features themselves.
    """
    count = len(modalities)
    found = {}
    for size in range(1, count + 1):
        for chosen in combinations(range(count), size):
            subset = np.zeros(count, bool)
            subset[list(chosen)] = True
            complete = np.asarray(present[:, subset].all(axis=1))
            found["+".join(modalities[k] for k in chosen)] = np.logical_and(complete[:, None], subset[None, :])
    found[RECORDED] = present
    random = np.stack([np.random.default_rng([SEED, *name.encode()]).random(count) for name in names])
    found[MCAR] = _at_least_one(present & (random >= missing), present)
    level = clinical.mean(1) if clinical.shape[1] else np.zeros(len(present))
    rank = (np.argsort(np.argsort(level)) + 0.5) / len(level)  # 0 to 1
    grows = 2 * missing * rank if missing <= 0.5 else 1 - 2 * (1 - missing) * (1 - rank)  # on average it is `missing`
    probability = grows[:, None] * np.array([1.0] * (count - 1) + [0.0])
    found[MAR] = _at_least_one(present & (random >= probability), present)
    return found


def _at_least_one(kept: Bools, present: Bools) -> Bools:
    """Keep the first present modality of a patient whose modalities were all masked."""
    first = np.zeros_like(present)
    first[np.arange(len(present)), present.argmax(1)] = True
    return np.asarray(np.where(np.asarray(kept.any(axis=1))[:, None], kept, present & first))


def prepared_patterns(
    data: Prepared, rows: NDArray[np.int64], *, missing: float
) -> Iterator[tuple[str, NDArray[np.int64], Bools]]:
    """Of each pattern its name, the positions in `rows` of its patients `[P]`, and the modalities they are predicted from
    `[P, K]`. Patterns without patients are left out."""
    names = [str(data.table["patient"][row]) for row in rows]
    for name, kept in patterns(data.modalities, data.present[rows], data.clinical[rows], names, missing=missing).items():
        chosen = np.flatnonzero(kept.any(1))
        if len(chosen):
            yield name, chosen, kept[chosen]
