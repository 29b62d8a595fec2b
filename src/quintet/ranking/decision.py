"""The decision rule: which configurations differ significantly, given the variation between patients and training runs?

Model of the score of configuration c, trained on the training set of fold f in run r, for patient i:
    y = mean_c + patient_ci + training_cf + run_cfr + noise_cfri.
A patient's score is the mean over the m_ci runs that tested the patient; d_i is the difference between two configurations.
Patients of one fold share training_cf and run_cfr, whose mean over the fold's runs has the variance v_c. The variance of any mean
over patients is (variance + (n - 1) mean covariance of two patients) / n, so
    se^2 = s_d^2 / n + k (v_A + v_B),   k = probability that two different patients were scored by the same run,
where s_d^2 is the plain sample variance of d. It already contains the patient x run noise, and a part of v if there are several
folds. F equal folds of n / F patients: k = (n / F - 1) / (n - 1). Any weighted sum of configurations is tested like this, with
the squared weights before the v.

v_c is the largest of these estimates, with that estimate's degrees of freedom: from repeated seeds, c's own and the pooled one;
with several folds, also the pooled one from the differences between folds and, if c varies significantly more than the others,
c's own. An interval of a single mean takes what all configurations have in common into account, too. Seeds measure runs
precisely, but only folds show the effect of the training set. With one fold this effect is the same
in all runs: then the verdict is about models trained on this training set.

Configurations that share weights or start from each other's are compared run by run: their runs are not independent, and the
difference of two runs with the same fold and seed plays the part of a configuration.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
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
class Family:
    """Comparisons that are corrected together, all [comparisons]: weighted sums of the configurations' means."""

    difference: Floats
    patient_variance: Floats  # within folds
    se: Floats
    df: Floats
    p: Floats
    p_holm: Floats
    significant: Bools
    run_by_run: Bools  # of configurations that share weights
    patients_needed: int  # with fewer patients no difference can be established

    def half_width(self, alpha: float) -> Floats:
        """Of the interval of each difference by itself."""
        return np.asarray(stats.t.ppf(1 - alpha / 2, self.df) * self.se)


@dataclass(frozen=True)
class Decision:
    """`pairs` are in the order of `np.triu_indices`; the other arrays are [configs]. `run_variance` is None if no seed was
    repeated."""

    patients: int
    folds: int
    mean: Floats
    half_width: Floats
    patient_variance: Floats  # within folds
    config_run_variance: Floats  # between repeated seeds; NaN for a configuration without any
    config_run_square: Floats  # the mean square of its runs' means, with the noise that the variance above is free of
    config_run_df: Floats
    run_variance: float | None  # pooled over configurations
    run_df: float
    pairs: Family
    planned: Family

    @property
    def decidable(self) -> bool:
        return self.patients >= self.pairs.patients_needed

    @property
    def runs_vary(self) -> bool:
        """The variance between training runs was measured, from seeds or from folds."""
        return self.run_df > 0 or self.folds > 1

    @property
    def significant(self) -> Bools:
        """Which pairs are significantly different, [configs, configs]."""
        return self.matrix(self.pairs.significant) > 0

    def matrix(self, values: Floats | Bools) -> Floats:
        """An array of `pairs` as a symmetric matrix [configs, configs] with 0 on the diagonal."""
        square = np.zeros((len(self.mean),) * 2)
        square[np.triu_indices(len(square), 1)] = values
        return square + square.T


def decide(
    scores: Floats,
    *,
    alpha: float = 0.05,
    deterministic: Bools | None = None,
    related: Sequence[int] | None = None,
    planned: Floats | None = None,
) -> Decision:
    """Apply the rule to `scores` [configs, runs, patients]; NaN where a run did not test a patient (another fold, fewer seeds).

    Every patient needs a score in every configuration. `deterministic` [configs] marks the configurations whose training is
    deterministic; all others get a run variance, even with a single run. `related` [configs]: configurations with the same number
    share weights, or started from each other's, in runs with the same fold and seed. `planned` [comparisons, configs]: weights of
    the comparisons that were declared beforehand, a family of their own. Student's t with Satterthwaite's (1946) degrees of
    freedom; Holm's (1979) correction within each family: all pairs, and the planned comparisons.
    """
    configs, _, n = scores.shape
    by_patient = patient_means(scores)  # [configs, patients]
    if deterministic is None:
        deterministic = np.zeros(configs, bool)
    folds = fold_of_patients(scores)
    seeds = from_seeds(scores, by_patient, deterministic)
    shared = shared_variance(scores, by_patient, folds, seeds, deterministic)
    tolerance = ROUND_OFF * float(np.abs(by_patient).max())

    def compare(weights: Floats, shared: Shared) -> Family:
        values = weights @ by_patient
        difference = _zero_below(values.mean(-1), tolerance)
        variance = _sample_variance(values)
        se, df = _standard_errors(weights, variance, n, shared, tolerance)
        run_by_run = _related_rows(weights, related, scores)
        for row in np.flatnonzero(run_by_run):
            own = _paired_runs(weights[row], scores, folds)
            se[row], df[row] = (x[0] for x in _standard_errors(np.ones((1, 1)), variance[[row]], n, own, tolerance))
        # se = 0: either every patient has the same difference (t infinite), or there is a tie (t zero)
        t = np.divide(np.abs(difference), se, out=np.where(difference == 0, 0.0, np.inf), where=se > 0)
        p = 2 * stats.t.sf(t, df)
        p_holm, needed = holm(p), patients_needed(len(weights), alpha)
        significant = (p_holm <= alpha) & (n >= needed)
        return Family(difference, _variance_within(values, folds), se, df, p, p_holm, significant, run_by_run, needed)

    one = np.eye(configs)
    first, second = np.triu_indices(configs, 1)
    alone = compare(one, shared_variance(scores, by_patient, folds, seeds, deterministic, common=True))
    return Decision(
        patients=n,
        folds=int(folds.max()) + 1,
        mean=by_patient.mean(-1),
        half_width=alone.half_width(alpha),
        patient_variance=alone.patient_variance,
        config_run_variance=np.maximum(seeds.own, 0),
        config_run_square=seeds.own_square,
        config_run_df=seeds.own_df,
        run_variance=max(seeds.pooled, 0) if seeds.pooled_df > 0 or deterministic.all() else None,
        run_df=seeds.pooled_df,
        pairs=compare(one[first] - one[second], shared),
        planned=compare(np.zeros((0, configs)) if planned is None else planned, shared),
    )


def _related_rows(weights: Floats, related: Sequence[int] | None, scores: Floats) -> Bools:
    """Which comparisons are of related configurations that have the same runs."""
    if related is None:
        return np.zeros(len(weights), bool)
    family, tested = np.asarray(related), ~np.isnan(scores)
    used = [np.flatnonzero(row) for row in weights]
    return np.array([len(u) > 1 and np.ptp(family[u]) == 0 and (tested[u] == tested[u[0]]).all() for u in used], bool)


def _paired_runs(weights: Floats, scores: Floats, folds: NDArray[np.int64]) -> Shared:
    """What the runs of related configurations do not have in common; `weights` [configs]."""
    used = np.flatnonzero(weights)
    difference = np.tensordot(weights[used], scores[used], 1)[None]  # [1, runs, patients]
    alone = np.zeros(1, bool)
    by_patient = patient_means(difference)
    return shared_variance(difference, by_patient, folds, from_seeds(difference, by_patient, alone), alone)


def _standard_errors(weights: Floats, variance: Floats, n: int, shared: Shared, tolerance: float) -> tuple[Floats, Floats]:
    """se = sqrt(variance / n + part) and Satterthwaite's df = se^4 / sum(component^2 / its df), per comparison.

    The sampling error of a part is that of its mean square before correction, so the denominator uses that one. The parts of
    configurations that use the same pooled estimate add up before they are squared.
    """
    squared = weights**2
    own = np.where(shared.source < 0, _squared_error(shared.square, shared.df), 0)
    error = squared**2 @ own
    for source in (0, 1):
        used = shared.source == source
        square = squared @ np.where(used, shared.square, 0)
        pooled_df = float(shared.df[used].max()) if used.any() else 0.0
        error = error + _squared_error(square, np.full_like(square, pooled_df))
    patients, part = variance / n, squared @ shared.part
    se2 = patients + part
    error = patients**2 / max(n - 1, 1) + np.where(part > 0, error, 0)
    undefined = (error == 0) | ~np.isfinite(error)
    df = np.where(undefined, max(n - 1, 1), np.divide(np.where(undefined, 1, se2) ** 2, np.where(undefined, 1, error)))
    most_df = np.where(weights == 0, np.inf, shared.most_df).min(-1)
    return _zero_below(np.sqrt(se2), tolerance), np.minimum(df, most_df)


def _squared_error(square: Floats, df: Floats) -> Floats:
    return np.divide(square**2, df, out=np.zeros_like(square), where=df > 0)


def _sample_variance(values: Floats) -> Floats:
    """Sample variance over the last axis; infinite for a single value, whose variance is unknown."""
    return values.var(-1, ddof=1) if values.shape[-1] > 1 else np.full(values.shape[:-1], np.inf)


def _variance_within(values: Floats, folds: NDArray[np.int64]) -> Floats:
    """Sample variance over the patients of a fold, pooled over folds: free of what the patients of a fold share."""
    count = int(folds.max()) + 1
    if count in (1, len(folds)):
        return _sample_variance(values)
    member = np.eye(count)[folds]  # [patients, folds]
    means = values @ (member / member.sum(0))
    return np.asarray(((values - means[:, folds]) ** 2).sum(-1) / (len(folds) - count))


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


def letters(group: str) -> set[str]:
    """The letters of a compact letter display; from the 53rd on they have a number."""
    return set(re.findall("[A-Za-z][0-9]*", group))


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
