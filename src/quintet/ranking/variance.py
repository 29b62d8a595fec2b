"""What the patients of a fold share, because the same runs scored them: estimates of its variance, from seeds and from folds.

decision.py states the model and how the estimates enter the standard error.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.sparse import block_array, csr_array
from scipy.sparse.csgraph import connected_components

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
MORE_VARIABLE = 0.05  # level of the F test that a configuration varies more between folds than the others
FEW_DF_OF_SEEDS, FEW_DF_OF_FOLDS = 4, 3  # over all configurations
ROUND_OFF = 1e-12  # relative to the largest score; smaller differences are rounding errors


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
    configuration's own, 0 pooled over seeds, 1 pooled over folds. `most_df`: of any comparison with it, because folds or
    seeds are few."""

    part: Floats
    square: Floats
    df: Floats
    source: Floats
    most_df: Floats


def patient_means(scores: Floats) -> Floats:
    """Mean over the runs that tested each patient: [configs, runs, patients] -> [configs, patients]."""
    tested = ~np.isnan(scores)
    means: Floats = np.where(tested, scores, 0).sum(1) / tested.sum(1)
    return means


def fold_of_patients(scores: Floats) -> NDArray[np.int64]:
    """The fold of each patient, numbered from 0: patients whom one run tested are in the same fold."""
    tested = csr_array((~np.isnan(scores)).any(0))  # [runs, patients]
    _, labels = connected_components(block_array([[None, tested], [tested.T, None]]), directed=False)  # of runs and patients
    return np.unique(labels[tested.shape[0] :], return_inverse=True)[1].astype(np.int64)


def shared_variance(
    scores: Floats, by_patient: Floats, folds: NDArray[np.int64], seeds: Estimates, deterministic: Bools, *, common: bool = False
) -> Shared:
    """The largest of the estimates from seeds and from folds, for each configuration. `common`: with what all configurations have
    in common, which is part of a mean's error, but not of a difference's.

    A few folds or runs may by chance show no variance between them, and then nothing would be left of their few degrees of
    freedom: up to FEW_DF_OF_FOLDS and FEW_DF_OF_SEEDS they limit those of the comparison.
    """
    configs, _, n = scores.shape
    one, pairs = np.ones(configs), max(n * (n - 1), 1)
    tested = ~np.isnan(scores)
    run_counts = tested.sum(1)
    weight = tested / run_counts[:, None]
    k = ((weight.sum(-1) ** 2).sum(-1) - (weight**2).sum((1, 2))) / pairs
    sources = [(np.where(deterministic, 0, k), seeds)]
    most_df = np.where(deterministic, np.inf, seeds.pooled_df if 0 < seeds.pooled_df <= FEW_DF_OF_SEEDS else np.inf)
    if by_fold := from_folds(by_patient, folds, common=common):
        between = by_fold.pooled_df or float(by_fold.own_df[0])
        most_df = np.minimum(most_df, between) if between <= FEW_DF_OF_FOLDS else most_df
        sources.append((one * ((np.bincount(folds) ** 2).sum() - n) / pairs, by_fold))
    candidates = []
    for number, (k, e) in enumerate(sources):
        candidates.append((k * e.own, k * e.own_square, e.own_df, -one))
        candidates.append((k * e.pooled, k * e.pooled_square, one * e.pooled_df, one * number))
    table = np.nan_to_num(np.array(candidates))  # [candidates, quantities, configs]
    best = np.maximum(table[:, 0], 0).argmax(0)
    part, square, df, source = table[best, :, np.arange(configs)].T
    return Shared(np.maximum(part, 0), square, df, source, most_df)


def from_seeds(scores: Floats, by_patient: Floats, deterministic: Bools) -> Estimates:
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


def from_folds(by_patient: Floats, folds: NDArray[np.int64], *, common: bool = False) -> Estimates | None:
    """The variance of what a configuration's runs of a fold have in common (training set, and the mean of the fold's runs), from
    the differences between folds after the mean over all configurations is taken away from each patient; None for one fold.

    One-way analysis of variance by folds. The centred scores of one of C configurations have the component
    v_c (1 - 2 / C) + (mean of v) / C, which is solved for v_c. Own estimates have few degrees of freedom and would cost power,
    so they are used (not 0) only where an F test finds more variance than in the other configurations. A single row, the
    difference of two configurations, is not centred. `common`: no row is, and the pooled estimate is the mean of the rows', whose
    degrees of freedom are those of one, because they have the same training sets.
    """
    configs, n = by_patient.shape
    sizes = np.bincount(folds)
    count = len(sizes)
    if count == 1 or n == count:
        return None
    centred = by_patient if common or configs == 1 else by_patient - by_patient.mean(0)
    means = np.stack([np.bincount(folds, row) for row in centred]) / sizes
    between = (sizes * (means - centred.mean(1, keepdims=True)) ** 2).sum(1) / (count - 1)
    within = ((centred - means[:, folds]) ** 2).sum(1) / (n - count)
    size = (n - (sizes**2).sum() / n) / (count - 1)
    component, square = (between - within) / size, between / size
    df = np.full(configs, count - 1.0)
    if configs == 1:
        return Estimates(component, square, df, 0.0, 0.0, 0.0)
    if common:
        return Estimates(np.zeros(configs), square, df, float(component.mean()), float(square.mean()), count - 1.0)
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
