"""The decision rule: which configurations differ significantly, given the variation between patients and training runs?

Model of the score of configuration c and training run r for patient i:
    y = mean_c + patient_ci + run_cr + noise_cri,   Var(run) = s_run^2, the same for every configuration.
A patient's score is the mean over the m_ci runs that tested the patient; d_i is the difference between two configurations.
The variance of any mean over patients is (variance + (n - 1) mean covariance of two patients) / n, so
    se^2 = s_d^2 / n + s_run^2 (k_A + k_B),   k_c = probability that two different patients were scored by the same run,
where s_d^2 is the plain sample variance of d. It already contains the patient x run noise, but not the effect of runs shared by
all patients; folds add a part of s_run^2 to it, and k_c is smaller by that part. One fold: k_c = 1 / seeds; F equal folds of
n / F patients: k_c = (n / F - 1) / (n - 1) / seeds. This equals s_pair^2 / n + 2 s_run^2 / runs with
s_pair^2 = s_d^2 minus the folds' share of s_run^2.
"""

import math
from dataclasses import dataclass
from string import ascii_letters

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
MIN_PATIENTS = 6
ROUND_OFF = 1e-12  # relative to the largest score; smaller differences are rounding errors


@dataclass(frozen=True)
class Decision:
    """Arrays are [configs] or [configs, configs] (row minus column). `run_variance` is None if no seed was repeated."""

    patients: int
    patients_needed: int  # with fewer patients no difference can be established
    mean: Floats
    half_width: Floats
    patient_variance: Floats
    config_run_variance: Floats  # NaN for a configuration without repeated seeds
    run_variance: float | None  # pooled over configurations
    run_df: float
    difference: Floats
    pair_variance: Floats  # s_pair^2
    se: Floats
    df: Floats
    p: Floats
    p_holm: Floats
    significant: Bools

    @property
    def decidable(self) -> bool:
        return self.patients >= self.patients_needed


@dataclass(frozen=True)
class RunVariance:
    """The pooled s_run^2, its uncorrected mean square and df; per configuration: its own s_run^2, k, and the folds' share."""

    pooled: float
    uncorrected: float
    df: float
    per_config: Floats
    k: Floats
    in_patient_variance: Floats


def decide(scores: Floats, *, alpha: float = 0.05, deterministic: Bools | None = None) -> Decision:
    """Apply the rule to `scores` [configs, runs, patients]; NaN where a run did not test a patient (another fold, fewer seeds).

    Every patient needs a score in every configuration. `deterministic` [configs] marks the configurations whose training is
    deterministic; all others get the pooled run variance, even with a single run. Student's t with Satterthwaite's (1946) degrees
    of freedom, Holm's (1979) correction for all pairs.
    """
    configs, _, n = scores.shape
    by_patient = patient_means(scores)  # [configs, patients]
    if deterministic is None:
        deterministic = np.zeros(configs, bool)
    runs = _estimate_run_variance(scores, by_patient, deterministic)
    tolerance = ROUND_OFF * float(np.abs(by_patient).max())
    paired = by_patient[:, None] - by_patient[None]  # [configs, configs, patients]
    difference = _zero_below(paired.mean(-1), tolerance)
    variance = _sample_variance(paired)
    se, df = _standard_error(variance, runs.k[:, None] + runs.k[None], n, runs, tolerance)
    # se = 0: either every patient has the same difference (t infinite), or there is a tie (t zero)
    t = np.divide(np.abs(difference), se, out=np.where(difference == 0, 0.0, np.inf), where=se > 0)
    p = 2 * stats.t.sf(t, df)
    config_variance = _sample_variance(by_patient)
    config_se, config_df = _standard_error(config_variance, runs.k, n, runs, tolerance)
    upper = np.triu_indices(configs, 1)
    p_holm = np.ones_like(p)
    p_holm[upper] = holm(p[upper])
    p_holm = np.minimum(p_holm, p_holm.T)
    needed = patients_needed(len(upper[0]), alpha)
    shares = runs.in_patient_variance
    return Decision(
        patients=n,
        patients_needed=needed,
        mean=by_patient.mean(-1),
        half_width=stats.t.ppf(1 - alpha / 2, config_df) * config_se,
        patient_variance=np.maximum(config_variance - shares, 0),
        config_run_variance=runs.per_config,
        run_variance=runs.pooled if runs.df > 0 or deterministic.all() else None,
        run_df=runs.df,
        difference=difference,
        pair_variance=np.maximum(variance - shares[:, None] - shares[None], 0),
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


def _estimate_run_variance(scores: Floats, by_patient: Floats, deterministic: Bools) -> RunVariance:
    """Estimate s_run^2 from the products e_ri e_rj of two different patients' deviations e from their means over runs.

    Patient x run noise is independent between patients, so it cancels:
        s_run^2 = sum_r sum_(i != j) e_ri e_rj / sum_(i != j) tr(P_i P_j),   P_i = centring over the runs of patient i.
    With S runs of n patients this is the variance between the runs' means minus (interaction mean square) / n, the ANOVA
    estimate; negative estimates become 0. A fold with a single seed adds nothing to either sum. Pooled over the configurations
    with stochastic training. df: Satterthwaite's for the quadratic form sum_r (sum_i e_ri)^2.
    """
    n = scores.shape[-1]
    tested = ~np.isnan(scores)
    run_counts = tested.sum(1)  # [configs, patients]: runs that tested the patient
    deviation = np.where(tested, scores - by_patient[:, None], 0)
    uncorrected = (deviation.sum(-1) ** 2).sum(-1)
    corrected = uncorrected - (deviation**2).sum((1, 2))
    weight = tested / run_counts[:, None]  # [configs, runs, patients]
    overlap = weight @ tested.swapaxes(1, 2)
    centring = np.eye(scores.shape[1]) * tested.sum(-1)[:, None] - overlap  # sum of P_i, [configs, runs, runs]
    square = centring @ centring
    trace = np.trace(square, axis1=1, axis2=2)
    size = trace - (run_counts - 1).sum(-1)
    usable = (size > ROUND_OFF * n) & ~deterministic
    per_config = np.maximum(np.divide(corrected, size, out=np.full(len(scores), np.nan), where=size > ROUND_OFF * n), 0)
    k = np.where(deterministic, 0, (weight.sum(-1) ** 2).sum(-1) - (weight**2).sum((1, 2))) / max(n * (n - 1), 1)
    if not usable.any():
        return RunVariance(0.0, 0.0, 0.0, per_config, k, np.zeros(len(scores)))
    pooled = max(float(corrected[usable].sum() / size[usable].sum()), 0.0)
    df = float(trace[usable].sum() ** 2 / (square[usable] ** 2).sum())
    in_patient_variance = pooled * (np.where(deterministic, 0, (1 / run_counts).mean(-1)) - k)
    return RunVariance(pooled, float(uncorrected[usable].sum() / trace[usable].sum()), df, per_config, k, in_patient_variance)


def _standard_error(variance: Floats, k: Floats, n: int, runs: RunVariance, tolerance: float) -> tuple[Floats, Floats]:
    """se = sqrt(variance / n + k s_run^2) and Satterthwaite's df = se^4 / sum(component^2 / its df), both shaped as `variance`.

    The sampling error of the run component is that of its uncorrected mean square, so the denominator uses that one.
    """
    se2 = variance / n + k * runs.pooled
    denominator = (variance / n) ** 2 / max(n - 1, 1)
    if runs.pooled > 0:
        denominator = denominator + (k * runs.uncorrected) ** 2 / runs.df
    undefined = (denominator == 0) | ~np.isfinite(denominator)
    df = np.where(undefined, max(n - 1, 1), np.divide(np.where(undefined, 1, se2) ** 2, np.where(undefined, 1, denominator)))
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
