"""The decision rule: which configurations differ significantly, given the variation between patients and training runs?

Model of the score of configuration c, trained on the training set of fold f in run r, for patient i:
    y = mean_c + patient_ci + training_cf + run_cfr + noise_cfri.
A patient's score is the mean over the m_ci runs that tested the patient; d_i is the difference between two configurations.
Patients of one fold share training_cf and run_cfr, whose mean over the fold's runs has the variance v_c. The variance of any mean
over patients is (variance + (n - 1) mean covariance of two patients) / n, so
    se^2 = s_d^2 / n + k (v_A + v_B),   k = probability that two different patients were scored by the same run,
where s_d^2 is the plain sample variance of d. It already contains the patient x run noise, and a part of v if there are several
folds. F equal folds of n / F patients: k = (n / F - 1) / (n - 1).

v_c is the largest of these estimates, with that estimate's degrees of freedom: from repeated seeds, c's own and the pooled one;
with several folds, also the pooled one from the differences between folds and, if c varies significantly more than the others,
c's own. Seeds measure runs precisely, but only folds show the effect of the training set. With one fold this effect is the same
in all runs: then the verdict is about models trained on this training set.

Configurations that share weights or start from each other's are compared run by run: their runs are not independent, and the
difference of two runs with the same fold and seed plays the part of a configuration.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from string import ascii_letters

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from quintet.ranking.variance import (
    ROUND_OFF,
    Bools,
    Floats,
    Shared,
    fold_of_patients,
    from_seeds,
    patient_means,
    shared_variance,
)

MIN_PATIENTS = 6


@dataclass(frozen=True)
class Decision:
    """Arrays are [configs] or [configs, configs] (row minus column). `run_variance` is None if no seed was repeated."""

    patients: int
    patients_needed: int  # with fewer patients no difference can be established
    folds: int
    mean: Floats
    half_width: Floats
    patient_variance: Floats
    config_run_variance: Floats  # between repeated seeds; NaN for a configuration without any
    run_variance: float | None  # pooled over configurations
    run_df: float
    difference: Floats
    pair_variance: Floats  # s_d^2 minus the part that is due to folds
    se: Floats
    df: Floats
    p: Floats
    p_holm: Floats
    significant: Bools

    @property
    def decidable(self) -> bool:
        return self.patients >= self.patients_needed


def decide(
    scores: Floats, *, alpha: float = 0.05, deterministic: Bools | None = None, related: Sequence[int] | None = None
) -> Decision:
    """Apply the rule to `scores` [configs, runs, patients]; NaN where a run did not test a patient (another fold, fewer seeds).

    Every patient needs a score in every configuration. `deterministic` [configs] marks the configurations whose training is
    deterministic; all others get a run variance, even with a single run. `related` [configs]: configurations with the same number
    share weights, or started from each other's, in runs with the same fold and seed. Student's t with Satterthwaite's (1946)
    degrees of freedom, Holm's (1979) correction for all pairs.
    """
    configs, _, n = scores.shape
    by_patient = patient_means(scores)  # [configs, patients]
    if deterministic is None:
        deterministic = np.zeros(configs, bool)
    folds = fold_of_patients(scores)
    seeds = from_seeds(scores, by_patient, deterministic)
    shared = shared_variance(scores, by_patient, folds, seeds, deterministic)
    tolerance = ROUND_OFF * float(np.abs(by_patient).max())
    paired = by_patient[:, None] - by_patient[None]  # [configs, configs, patients]
    difference = _zero_below(paired.mean(-1), tolerance)
    variance = _sample_variance(paired)
    se, df = _standard_errors(variance, n, shared, tolerance)
    in_pair = shared.in_patient_variance[:, None] + shared.in_patient_variance[None]
    for a, b in _related_pairs(related, scores):
        own = _paired_runs(scores[[a]] - scores[[b]], folds)
        for i, j in ((a, b), (b, a)):
            se[i, j], df[i, j] = (x[0] for x in _standard_error(variance[a, b : b + 1], n, own, tolerance))
            in_pair[i, j] = own.in_patient_variance[0]
    # se = 0: either every patient has the same difference (t infinite), or there is a tie (t zero)
    t = np.divide(np.abs(difference), se, out=np.where(difference == 0, 0.0, np.inf), where=se > 0)
    p = 2 * stats.t.sf(t, df)
    config_variance = _sample_variance(by_patient)
    config_se, config_df = _standard_error(config_variance, n, shared, tolerance)
    upper = np.triu_indices(configs, 1)
    p_holm = np.ones_like(p)
    p_holm[upper] = holm(p[upper])
    p_holm = np.minimum(p_holm, p_holm.T)
    needed = patients_needed(len(upper[0]), alpha)
    return Decision(
        patients=n,
        patients_needed=needed,
        folds=int(folds.max()) + 1,
        mean=by_patient.mean(-1),
        half_width=stats.t.ppf(1 - alpha / 2, config_df) * config_se,
        patient_variance=np.maximum(config_variance - shared.in_patient_variance, 0),
        config_run_variance=np.maximum(seeds.own, 0),
        run_variance=max(seeds.pooled, 0) if seeds.pooled_df > 0 or deterministic.all() else None,
        run_df=seeds.pooled_df,
        difference=difference,
        pair_variance=np.maximum(variance - in_pair, 0),
        se=se,
        df=df,
        p=p,
        p_holm=p_holm,
        significant=(p_holm <= alpha) & (n >= needed),
    )


def _related_pairs(related: Sequence[int] | None, scores: Floats) -> list[tuple[int, int]]:
    """Pairs of related configurations that have the same runs."""
    if related is None:
        return []
    tested = ~np.isnan(scores)
    pairs = combinations(range(len(scores)), 2)
    return [(a, b) for a, b in pairs if related[a] == related[b] and (tested[a] == tested[b]).all()]


def _paired_runs(difference: Floats, folds: NDArray[np.int64]) -> Shared:
    """What the runs of two related configurations do not have in common; `difference` [1, runs, patients]."""
    alone = np.zeros(1, bool)
    by_patient = patient_means(difference)
    return shared_variance(difference, by_patient, folds, from_seeds(difference, by_patient, alone), alone)


def _standard_error(variance: Floats, n: int, shared: Shared, tolerance: float) -> tuple[Floats, Floats]:
    """se = sqrt(variance / n + part) and Satterthwaite's df = se^4 / sum(component^2 / its df), per configuration.

    The sampling error of a part is that of its mean square before correction, so the denominator uses that one.
    """
    return _satterthwaite(variance / n, shared.part, _squared_error(shared.square, shared.df), n, tolerance)


def _standard_errors(variance: Floats, n: int, shared: Shared, tolerance: float) -> tuple[Floats, Floats]:
    """The same for all pairs. If both configurations use one pooled estimate, its parts add up before they are squared."""
    part = shared.part[:, None] + shared.part[None]
    own = np.where(shared.source < 0, _squared_error(shared.square, shared.df), 0)
    error = own[:, None] + own[None]
    for source in (0, 1):
        used = shared.source == source
        square = np.where(used, shared.square, 0)
        df = float(shared.df[used].max()) if used.any() else 0.0
        error = error + _squared_error(square[:, None] + square[None], np.full_like(error, df))
    return _satterthwaite(variance / n, part, error, n, tolerance)


def _squared_error(square: Floats, df: Floats) -> Floats:
    return np.divide(square**2, df, out=np.zeros_like(square), where=df > 0)


def _satterthwaite(patients: Floats, part: Floats, part_error: Floats, n: int, tolerance: float) -> tuple[Floats, Floats]:
    se2 = patients + part
    error = patients**2 / max(n - 1, 1) + np.where(part > 0, part_error, 0)
    undefined = (error == 0) | ~np.isfinite(error)
    df = np.where(undefined, max(n - 1, 1), np.divide(np.where(undefined, 1, se2) ** 2, np.where(undefined, 1, error)))
    return _zero_below(np.sqrt(se2), tolerance), df


def _sample_variance(values: Floats) -> Floats:
    """Sample variance over the last axis; infinite for a single value, whose variance is unknown."""
    return values.var(-1, ddof=1) if values.shape[-1] > 1 else np.full(values.shape[:-1], np.inf)


def _zero_below(values: Floats, tolerance: float) -> Floats:
    return np.where(np.abs(values) <= tolerance, 0.0, values)


def holm(p: Floats) -> Floats:
    """Holm's step-down adjusted p (1979): running maximum of (m - j) p_(j), j = 0, 1, ..."""
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted


def patients_needed(pairs: int, alpha: float = 0.05) -> int:
    """Smallest number of patients with which a difference can be established: at least 6, and 2 / 2^n <= alpha / pairs.

    2 / 2^n is the smallest two-sided p of a sign-flip test, reached if all n patients differ in the same direction: a smaller p
    would rest on the normality assumption alone.
    """
    return max(MIN_PATIENTS, math.ceil(math.log2(2 * max(pairs, 1) / alpha) - ROUND_OFF))


def compact_letters(significant: Bools) -> list[str]:
    """Compact letter display of a symmetric matrix [configs, configs], best configuration first: two configurations share a
    letter exactly if they are not significantly different.

    Insert-and-absorb, then drop redundant letters (Piepho 2004, doi:10.1198/1061860043515).
    """
    count = len(significant)
    columns = [frozenset(range(count))]
    for i, j in zip(*np.nonzero(np.triu(significant)), strict=True):
        split = [part for c in columns for part in ((c - {i}, c - {j}) if {i, j} <= c else (c,))]
        columns = [c for c in dict.fromkeys(split) if not any(c < other for other in split)]
    columns.sort(key=sorted)
    for column in reversed(columns[:]):
        rest = [c for c in columns if c is not column]
        if all(any({i, j} <= c for c in rest) for i in column for j in column):
            columns = rest
    names = [ascii_letters[i % 52] + (str(i // 52 + 1) if i >= 52 else "") for i in range(len(columns))]
    return ["".join(name for name, c in zip(names, columns, strict=True) if i in c) for i in range(count)]
