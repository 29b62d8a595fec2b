"""Simulated scores and tidy tables, drawn from the model that the decision rule assumes."""

import numpy as np
import pandas as pd

from quintet.results import COLUMNS


def draw(
    rng: np.random.Generator,
    *,
    configs: int = 4,
    seeds: int = 3,
    patients: int = 20,
    folds: int = 1,
    patient_sd: float = 2.0,
    run_sd: float = 0.8,
    noise_sd: float = 0.5,
    shift: float = 0.0,
) -> np.ndarray:
    """Scores [configs, folds * seeds, patients], NaN outside a patient's fold; configuration 0 is `shift` better."""
    patient_effect = rng.normal(0, 8, patients) + rng.normal(0, patient_sd, (configs, 1, patients)) + 60
    run_effect = rng.normal(0, run_sd, (configs, folds * seeds, 1))
    scores = patient_effect + run_effect + rng.normal(0, noise_sd, (configs, folds * seeds, patients))
    scores[0] += shift
    run_fold, patient_fold = np.repeat(np.arange(folds), seeds), np.arange(patients) % folds
    return np.where(run_fold[:, None] == patient_fold, scores, np.nan)


def tidy(scores: np.ndarray, *, seeds: int | None = None, cases: int = 1, metric: str = "dice") -> pd.DataFrame:
    """The tidy table of scores [configs, runs, patients]; runs are ordered by fold, `seeds` per fold (default: one fold)."""
    seeds = seeds or scores.shape[1]
    rows = [
        ("s", "ABCDEFGHIJKLMNOPQRST"[c], r // seeds, r % seeds, f"p{i:03d}", f"p{i:03d}-{k}", metric, value + k - (cases - 1) / 2)
        for (c, r, i), value in np.ndenumerate(scores)
        if not np.isnan(value)
        for k in range(cases)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)
