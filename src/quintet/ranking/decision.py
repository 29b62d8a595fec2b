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
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
MIN_PATIENTS = 6
MORE_VARIABLE = 0.05  # level of the F test that a configuration varies more between folds than the others
ROUND_OFF = 1e-12  # relative to the largest score; smaller differences are rounding errors


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


@dataclass(frozen=True)
class Estimates:
    """Estimates of the variance of what all patients of a fold share: each configuration's own [configs], and pooled. A square is
    the mean square before correction, which determines the sampling error."""

    own: Floats
    own_square: Floats
    own_df: Floats
    pooled: float
    pooled_square: float
    pooled_df: float


@dataclass(frozen=True)
class Shared:
    """The largest of the estimates as parts of each configuration's squared standard error, all [configs]. `source`: -1 the
    configuration's own, 0 pooled over seeds, 1 pooled over folds; `in_patient_variance`: the part that s_d^2 contains."""

    part: Floats
    square: Floats
    df: Floats
    source: Floats
    in_patient_variance: Floats


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
    folds = _folds(scores)
    seeds = _from_seeds(scores, by_patient, deterministic)
    shared = _shared(scores, by_patient, folds, seeds, deterministic)
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


def patient_means(scores: Floats) -> Floats:
    """Mean over the runs that tested each patient: [configs, runs, patients] -> [configs, patients]."""
    tested = ~np.isnan(scores)
    means: Floats = np.where(tested, scores, 0).sum(1) / tested.sum(1)
    return means


def _folds(scores: Floats) -> NDArray[np.int64]:
    """The fold of each patient, numbered from 0: patients whom one run tested are in the same fold."""
    tested: Floats = (~np.isnan(scores)).any(0).astype(float)  # [runs, patients]
    _, labels = connected_components(csr_array(tested.T @ tested), directed=False)
    return np.asarray(labels, np.int64)


def _related_pairs(related: Sequence[int] | None, scores: Floats) -> list[tuple[int, int]]:
    """Pairs of related configurations that have the same runs."""
    if related is None:
        return []
    tested = ~np.isnan(scores)
    pairs = combinations(range(len(scores)), 2)
    return [(a, b) for a, b in pairs if related[a] == related[b] and (tested[a] == tested[b]).all()]


def _from_seeds(scores: Floats, by_patient: Floats, deterministic: Bools) -> Estimates:
    """The variance between the runs of a fold, from products e_ri e_rj of two different patients' deviations e from their means
    over runs.

    Patient x run noise is independent between patients, so it cancels:
        s_run^2 = sum_r sum_(i != j) e_ri e_rj / sum_(i != j) tr(P_i P_j),   P_i = centring over the runs of patient i.
    With S runs of n patients this is the variance between the runs' means minus (interaction mean square) / n, the ANOVA
    estimate. A fold with a single seed adds nothing to either sum. Pooled over the configurations with stochastic training. df:
    Satterthwaite's for the quadratic form sum_r (sum_i e_ri)^2.
    """
    n = scores.shape[-1]
    tested = ~np.isnan(scores)
    run_counts = tested.sum(1)  # [configs, patients]: runs that tested the patient
    deviation = np.where(tested, scores - by_patient[:, None], 0)
    square = (deviation.sum(-1) ** 2).sum(-1)
    corrected = square - (deviation**2).sum((1, 2))
    weight = tested / run_counts[:, None]  # [configs, runs, patients]
    centring = np.eye(scores.shape[1]) * tested.sum(-1)[:, None] - weight @ tested.swapaxes(1, 2)  # sum of P_i
    squared = centring @ centring
    trace, size = np.trace(squared, axis1=1, axis2=2), np.trace(squared, axis1=1, axis2=2) - (run_counts - 1).sum(-1)
    known = size > ROUND_OFF * n
    nan = np.full(len(scores), np.nan)
    own = Estimates(
        np.divide(corrected, size, out=nan.copy(), where=known),
        np.divide(square, trace, out=nan.copy(), where=known),
        np.divide(trace**2, (squared**2).sum((1, 2)), out=nan.copy(), where=known),
        0.0,
        0.0,
        0.0,
    )
    use = known & ~deterministic
    if not use.any():
        return own
    return Estimates(
        own.own,
        own.own_square,
        own.own_df,
        float(corrected[use].sum() / size[use].sum()),
        float(square[use].sum() / trace[use].sum()),
        float(trace[use].sum() ** 2 / (squared[use] ** 2).sum()),
    )


def _from_folds(by_patient: Floats, folds: NDArray[np.int64]) -> Estimates | None:
    """The variance of what a configuration's runs of a fold have in common (training set, and the mean of the fold's runs), from
    the differences between folds after the mean over all configurations is taken away from each patient; None for one fold.

    One-way analysis of variance by folds. The centred scores of one of C configurations have the component
    v_c (1 - 2 / C) + (mean of v) / C, which is solved for v_c. Own estimates have few degrees of freedom and would cost power,
    so they are used (not 0) only where an F test finds more variance than in the other configurations. A single row, the
    difference of two configurations, is not centred.
    """
    configs, n = by_patient.shape
    sizes = np.bincount(folds)
    count = len(sizes)
    if count == 1 or n == count:
        return None
    centred = by_patient - by_patient.mean(0) if configs > 1 else by_patient
    means = np.stack([np.bincount(folds, row) for row in centred]) / sizes
    between = (sizes * (means - centred.mean(1, keepdims=True)) ** 2).sum(1) / (count - 1)
    within = ((centred - means[:, folds]) ** 2).sum(1) / (n - count)
    size = (n - (sizes**2).sum() / n) / (count - 1)
    component, square = (between - within) / size, between / size
    df = np.full(configs, count - 1.0)
    if configs == 1:
        return Estimates(component, square, df, 0.0, 0.0, 0.0)
    pooled, pooled_square = component.sum() / (configs - 1), square.sum() / (configs - 1)
    pooled_df = (configs - 1.0) * (count - 1)
    larger = np.zeros(configs, bool)
    if configs > 2:
        alone = square * configs / (configs - 1)  # the mean square of one contrast, independent of the rest
        rest = (pooled_square * (configs - 1) - alone) / (configs - 2)
        ratio = np.divide(alone, rest, out=np.full(configs, np.inf), where=rest > 0)
        larger = stats.f.sf(ratio, df, pooled_df - df) < MORE_VARIABLE
        component = (component - pooled / configs) / (1 - 2 / configs)
        square = (square - pooled_square / configs) / (1 - 2 / configs)
    return Estimates(np.where(larger, component, 0), square, df, float(pooled), float(pooled_square), pooled_df)


def _shared(scores: Floats, by_patient: Floats, folds: NDArray[np.int64], seeds: Estimates, deterministic: Bools) -> Shared:
    """The largest of the estimates from seeds and from folds, for each configuration."""
    configs, _, n = scores.shape
    one, pairs = np.ones(configs), max(n * (n - 1), 1)
    tested = ~np.isnan(scores)
    run_counts = tested.sum(1)
    weight = tested / run_counts[:, None]
    k = ((weight.sum(-1) ** 2).sum(-1) - (weight**2).sum((1, 2))) / pairs
    # of s_run^2, two different patients share k, and a patient's score contains the mean of 1 / runs
    sources = [(np.where(deterministic, 0, k), np.where(deterministic, 0, (1 / run_counts).mean(-1)), seeds)]
    if by_fold := _from_folds(by_patient, folds):
        sources.append((one * ((np.bincount(folds) ** 2).sum() - n) / pairs, one, by_fold))
    candidates = []
    for number, (k, diagonal, e) in enumerate(sources):
        candidates.append((k * e.own, k * e.own_square, e.own_df, -one, (diagonal - k) * e.own))
        pooled = (one * e.pooled_df, one * number, (diagonal - k) * e.pooled)
        candidates.append((k * e.pooled, k * e.pooled_square, *pooled))
    table = np.nan_to_num(np.array(candidates))  # [candidates, quantities, configs]
    best = np.maximum(table[:, 0], 0).argmax(0)
    part, square, df, source, in_patient_variance = table[best, :, np.arange(configs)].T
    return Shared(np.maximum(part, 0), square, df, source, np.maximum(in_patient_variance, 0))


def _paired_runs(difference: Floats, folds: NDArray[np.int64]) -> Shared:
    """What the runs of two related configurations do not have in common; `difference` [1, runs, patients]."""
    alone = np.zeros(1, bool)
    by_patient = patient_means(difference)
    return _shared(difference, by_patient, folds, _from_seeds(difference, by_patient, alone), alone)


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
