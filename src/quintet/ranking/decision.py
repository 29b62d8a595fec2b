"""The one decision rule: which configurations do patients and training runs together separate?

Model of the score of configuration c, trained run r, patient i:
    y = mean_c + patient_ci + run_cr + noise_cri,   Var(run) = s_run^2, the same for every configuration.
A patient's score is the mean over the m_ci runs that tested that patient; d_i is the difference of two configurations.
The variance of any mean over patients is (variance + (n - 1) mean covariance of two patients) / n, so
    se^2 = s_d^2 / n + s_run^2 (k_A + k_B),   k_c = chance that two different patients were scored by the same run,
where s_d^2 is the plain sample variance of d: runs shared by all patients do not widen it, patient x run noise is in it
already, and the part of s_run^2 that folds put into it is what k_c leaves out. One fold: k_c = 1 / seeds; F equal folds of
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
LEAST_PATIENTS = 6
ROUND_OFF = 1e-12  # relative to the largest score; anything smaller is arithmetic, not a difference


@dataclass(frozen=True)
class Decision:
    """Arrays [configs] or [configs, configs] (row minus column); `run_variance` is None where no repeated seed shows it."""

    patients: int
    needed: int  # patients below which nothing can be decided
    mean: Floats
    half_width: Floats
    patient_variance: Floats
    own_run_variance: Floats  # NaN where the configuration has no repeats
    run_variance: float | None
    run_df: float
    difference: Floats
    pair_variance: Floats  # s_pair^2
    se: Floats
    df: Floats
    p: Floats
    p_holm: Floats
    separated: Bools

    @property
    def decidable(self) -> bool:
        return self.patients >= self.needed


@dataclass(frozen=True)
class RunNoise:
    """What runs add: pooled s_run^2, its uncorrected part and df; by configuration its own, k, and the share that folds hide."""

    variance: float
    uncorrected: float
    df: float
    own: Floats
    k: Floats
    in_patients: Floats


def decide(scores: Floats, *, alpha: float = 0.05, deterministic: Bools | None = None) -> Decision:
    """Apply the rule to `scores` [configs, runs, patients]; NaN where a run did not test a patient (another fold, fewer seeds).

    Every patient needs a score in every configuration. `deterministic` [configs]: configurations whose training has no chance
    in it; the others take the pooled run variance, also those with a single run. t with Satterthwaite (1946) degrees of
    freedom, Holm (1979) over all pairs.
    """
    configs, _, n = scores.shape
    by_patient = patient_means(scores)  # [C, n]
    still = np.zeros(configs, bool) if deterministic is None else deterministic
    noise = _run_noise(scores, by_patient, still)
    tiny = ROUND_OFF * float(np.abs(by_patient).max())
    apart = by_patient[:, None] - by_patient[None]  # [C, C, n]
    difference = _snap(apart.mean(-1), tiny)
    spread = _variance(apart)
    se, df = _standard_error(spread, noise.k[:, None] + noise.k[None], n, noise, tiny)
    # se 0 and a difference: every patient differs by the same amount; se 0 and none: a tie
    t = np.divide(np.abs(difference), se, out=np.where(difference == 0, 0.0, np.inf), where=se > 0)
    p = 2 * stats.t.sf(t, df)
    own_spread = _variance(by_patient)
    own_se, own_df = _standard_error(own_spread, noise.k, n, noise, tiny)
    upper = np.triu_indices(configs, 1)
    p_holm = np.ones_like(p)
    p_holm[upper] = holm(p[upper])
    p_holm = np.minimum(p_holm, p_holm.T)
    needed = patients_needed(len(upper[0]), alpha)
    return Decision(
        patients=n,
        needed=needed,
        mean=by_patient.mean(-1),
        half_width=stats.t.ppf(1 - alpha / 2, own_df) * own_se,
        patient_variance=np.maximum(own_spread - noise.in_patients, 0),
        own_run_variance=noise.own,
        run_variance=noise.variance if noise.df > 0 or still.all() else None,
        run_df=noise.df,
        difference=difference,
        pair_variance=np.maximum(spread - noise.in_patients[:, None] - noise.in_patients[None], 0),
        se=se,
        df=df,
        p=p,
        p_holm=p_holm,
        separated=(p_holm <= alpha) & (n >= needed),
    )


def patient_means(scores: Floats) -> Floats:
    """[C, runs, n] -> [C, n]: the mean over the runs that tested the patient."""
    seen = ~np.isnan(scores)
    means: Floats = np.where(seen, scores, 0).sum(1) / seen.sum(1)
    return means


def _run_noise(scores: Floats, by_patient: Floats, still: Bools) -> RunNoise:
    """Estimate s_run^2 from the products e_ri e_rj of two different patients' deviations e from their means over runs.

    Patient x run noise is independent between patients, so it cancels:
        s_run^2 = sum_r sum_(i != j) e_ri e_rj / sum_(i != j) tr(P_i P_j),   P_i = centring over the runs of patient i.
    With S runs of n patients this is the variance between the runs' means minus (interaction mean square) / n, the ANOVA
    estimate; below 0 it is 0. Fewer than two seeds in a fold add nothing to either sum. Pooled over the configurations
    whose training has chance in it. df: Satterthwaite's for the quadratic form sum_r (sum_i e_ri)^2.
    """
    n = scores.shape[-1]
    seen = ~np.isnan(scores)
    times = seen.sum(1)  # [C, n], runs that tested a patient
    deviation = np.where(seen, scores - by_patient[:, None], 0)
    of_runs = (deviation.sum(-1) ** 2).sum(-1)
    corrected = of_runs - (deviation**2).sum((1, 2))
    weight = seen / times[:, None]  # [C, runs, n]
    centring = np.eye(scores.shape[1]) * seen.sum(-1)[:, None] - weight @ seen.swapaxes(1, 2)  # sum of P_i, [C, runs, runs]
    square = centring @ centring
    trace2 = np.trace(square, axis1=1, axis2=2)
    size = trace2 - (times - 1).sum(-1)
    usable = (size > ROUND_OFF * n) & ~still
    own = np.divide(corrected, size, out=np.full(len(scores), np.nan), where=size > ROUND_OFF * n)
    k = np.where(still, 0, (weight.sum(-1) ** 2).sum(-1) - (weight**2).sum((1, 2))) / max(n * (n - 1), 1)
    if not usable.any():
        return RunNoise(0.0, 0.0, 0.0, np.maximum(own, 0), k, np.zeros(len(scores)))
    whole = size[usable].sum()
    variance = max(float(corrected[usable].sum() / whole), 0.0)
    df = float(trace2[usable].sum() ** 2 / (square[usable] ** 2).sum())
    in_patients = variance * (np.where(still, 0, (1 / times).mean(-1)) - k)
    return RunNoise(variance, float(of_runs[usable].sum() / trace2[usable].sum()), df, np.maximum(own, 0), k, in_patients)


def _standard_error(spread: Floats, k: Floats, n: int, noise: RunNoise, tiny: float) -> tuple[Floats, Floats]:
    """se = sqrt(spread / n + k s_run^2), and Satterthwaite's df = se^4 / sum(component^2 / its df), both shaped as spread.

    The run component varies as its uncorrected sum of squares does, so that one stands in the denominator.
    """
    se2 = spread / n + k * noise.variance
    uncertain = (spread / n) ** 2 / max(n - 1, 1)
    if noise.variance > 0:
        uncertain = uncertain + (k * noise.uncorrected) ** 2 / noise.df
    plain = (uncertain == 0) | ~np.isfinite(uncertain)
    df = np.where(plain, max(n - 1, 1), np.divide(np.where(plain, 1, se2) ** 2, np.where(plain, 1, uncertain)))
    return _snap(np.sqrt(se2), tiny), df


def _variance(values: Floats) -> Floats:
    """Sample variance over the last axis; one value alone says nothing, so its variance is infinite."""
    return values.var(-1, ddof=1) if values.shape[-1] > 1 else np.full(values.shape[:-1], np.inf)


def _snap(values: Floats, tiny: float) -> Floats:
    return np.where(np.abs(values) <= tiny, 0.0, values)


def holm(p: Floats) -> Floats:
    """Holm's step-down adjusted p (1979): running maximum of (m - j) p_(j), j = 0, 1, ..."""
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted


def patients_needed(pairs: int, alpha: float = 0.05) -> int:
    """Fewest patients with which anything can be decided: at least 6, and 2 / 2^n <= alpha / pairs.

    2 / 2^n is the smallest two-sided p of n patients who all differ in the same direction (sign-flip test): a smaller p
    would rest on the normal assumption alone.
    """
    return max(LEAST_PATIENTS, math.ceil(math.log2(2 * max(pairs, 1) / alpha) - ROUND_OFF))


def letters(separated: Bools) -> list[str]:
    """Compact letter display of a symmetric [C, C] matrix, best first: two share a letter exactly if they are not separated.

    Insert-and-absorb, then drop the letters that the others make superfluous (Piepho 2004, doi:10.1198/1061860043515).
    """
    count = len(separated)
    columns = [frozenset(range(count))]
    for i, j in zip(*np.nonzero(np.triu(separated)), strict=True):
        split = [part for c in columns for part in ((c - {i}, c - {j}) if {i, j} <= c else (c,))]
        columns = [c for c in dict.fromkeys(split) if not any(c < other for other in split)]
    columns.sort(key=sorted)
    for column in reversed(columns[:]):
        rest = [c for c in columns if c is not column]
        if all(any({i, j} <= c for c in rest) for i in column for j in column):
            columns = rest
    names = [ascii_letters[i % 52] + (str(i // 52 + 1) if i >= 52 else "") for i in range(len(columns))]
    return ["".join(name for name, c in zip(names, columns, strict=True) if i in c) for i in range(count)]
