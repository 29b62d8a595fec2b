"""How many patients and seeds would make the lead of the first configuration significant, given the measured variances.

The decision rule (decision.py) for other numbers of patients and seeds: its statistic is drawn many times, with chi-squared
variances and a normal difference, and compared with Student's quantile for Satterthwaite's df. The level is alpha / pairs, Holm's
first and strictest step: later steps can only raise the power. s_pair contains the patient x run noise at the measured number of
seeds: the numbers are slightly too large for more seeds, slightly too small for fewer.
"""

from bisect import bisect_left
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from quintet.errors import InputError
from quintet.ranking.table import Ranking
from quintet.ranking.variance import FEW_DF_OF_FOLDS, FEW_DF_OF_SEEDS, MORE_VARIABLE
from quintet.ranking.verdict import count

SEEDS = (1, 2, 3, 5, 10)
NEGLIGIBLE_RATIO = 1e-6  # once the patients' part of se^2 is this share of the runs' part, more patients change nothing
DRAWS = 4000
MOST_PATIENTS = 10**7


@dataclass(frozen=True)
class Training:
    """How the configurations of a study are trained: `run_variance` between the runs of a fold, which `configs` configurations
    measure, out of `ranked`; of the two that are compared, `stochastic` (0 to 2) vary between runs."""

    folds: int
    seeds: int
    run_variance: float = 0.0
    configs: int = 2
    ranked: int = 2
    stochastic: float = 2.0

    @property
    def shared(self) -> float:
        """The variance of the pair's difference that all patients of a fold share."""
        return self.stochastic * self.run_variance / self.seeds


@dataclass(frozen=True)
class Plan:
    """`table`: one row per pair; columns '<n> seeds': the smallest number of patients, or why there is none, as text."""

    table: pd.DataFrame
    basis: str
    verdict: str


def power_of(patients: int, difference: float, pair_sd: float, training: Training, level: float) -> float:
    """Probability that `difference` (> 0) is significant at the two-sided `level`."""
    n, folds, shared = patients, training.folds, training.shared
    if pair_sd == 0 and shared == 0:
        return 1.0
    uniform, normal = _draws()
    k = max(n / folds - 1, 0) / (n - 1)  # two patients are in the same fold
    patient = (pair_sd**2 + (1 - k) * shared) * stats.chi2.ppf(uniform[0], n - 1) / (n - 1) / n
    se2, error = patient, patient**2 / (n - 1)
    if shared > 0 or folds > 1:  # folds measure a variance even where there is none
        part, part_error = _drawn_shared(uniform, n, pair_sd, training)
        se2, error = se2 + k * part, error + k**2 * part_error
    between_runs = training.configs * folds * (training.seeds - 1) if training.stochastic else 0
    limits = (((training.ranked - 1) * (folds - 1), FEW_DF_OF_FOLDS), (between_runs, FEW_DF_OF_SEEDS))
    few = [df for df, limit in limits if 0 < df <= limit]
    df = np.minimum(se2**2 / error, min(few, default=np.inf))
    difference_drawn = difference + np.sqrt(pair_sd**2 / n + shared / folds) * normal
    return float(np.mean(difference_drawn > stats.t.isf(level / 2, df) * np.sqrt(se2)))


def _drawn_shared(uniform: NDArray[np.float64], n: int, pair_sd: float, training: Training) -> tuple[NDArray[np.float64], ...]:
    """Draws of the estimate of `training.shared` and of its squared error, both [draws]: for each configuration of the pair, the
    largest of its own and the pooled estimates, as in decision.py; the error of one from folds is that of its mean square."""
    folds, df, shared = training.folds, training.folds * (training.seeds - 1), training.shared / 2
    # a single seed per fold: only the folds measure it
    own = np.stack([shared * stats.chi2.ppf(u, df) / df if df else np.zeros(DRAWS) for u in uniform[1:3]])
    own_df = np.full_like(own, max(df, 1))
    others = max(training.configs - 2, 0) * df
    pooled_df: NDArray[np.float64] | float = max(2 * df + others, 1)
    pooled = (df * own.sum(0) + (shared * stats.chi2.ppf(uniform[3], others) if others else 0)) / pooled_df
    own_square, pooled_square = own, pooled
    if folds > 1:
        noise, size, rest_df = pair_sd**2 / 2, n / folds, max(training.ranked - 2, 1) * (folds - 1)
        alone = np.stack([stats.chi2.ppf(u, folds - 1) / (folds - 1) for u in uniform[4:6]])
        rest = stats.chi2.ppf(uniform[6], rest_df) / rest_df
        scale = noise + size * shared
        by_fold = (scale * rest - noise) / size
        pooled_square = np.where(by_fold > pooled, scale * rest / size, pooled)
        pooled, pooled_df = np.maximum(pooled, by_fold), np.where(by_fold > pooled, rest_df, pooled_df)
        larger = stats.f.sf(alone / rest, folds - 1, rest_df) < MORE_VARIABLE
        own_by_fold = np.where(larger, (scale * alone - noise) / size, 0)
        own_square = np.where(own_by_fold > own, scale * alone / size, own)
        own, own_df = np.maximum(own, own_by_fold), np.where(own_by_fold > own, folds - 1, own_df)
    is_own = own > pooled
    pooled_square = np.where(pooled > 0, pooled_square, 0)
    error = np.where(is_own, own_square**2 / own_df, 0).sum(0) + ((~is_own).sum(0) * pooled_square) ** 2 / pooled_df
    return np.maximum(own, pooled).sum(0), error


@cache
def _draws() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same for every number of patients, so that the power rises smoothly with it."""
    rng = np.random.default_rng(0)
    return rng.uniform(size=(7, DRAWS)), rng.normal(size=DRAWS)


def patients_for(
    power: float, difference: float, pair_sd: float, training: Training, level: float, min_patients: int
) -> int | None:
    """Smallest number of patients, at least `min_patients`, with this power; None if no number has it: a tie, or runs that vary
    too much."""

    def power_with(patients: int) -> float:
        return power_of(patients, difference, pair_sd, training, level)

    if difference == 0:
        return None
    n = min_patients  # doubled up to the first success: with few df, power can fall again with more patients
    while power_with(n) < power:
        if pair_sd**2 / n <= NEGLIGIBLE_RATIO * training.shared or n > MOST_PATIENTS:
            return None
        n *= 2
    candidates = range(max(n // 2 + 1, min_patients), n)
    return candidates.start + bisect_left(candidates, power, key=power_with)


def plan(ranking: Ranking, *, power: float = 0.8, difference: float | None = None, run_sd: float | None = None) -> Plan:
    """Plan for the first configuration against the second, the median of the others, and the last.

    `difference` and `run_sd` replace the measured values, in the metric's unit. If no run SD is known, the plan uses 0 and states
    that its numbers are lower bounds. With one fold, a single seed suffices only between configurations with deterministic
    training.
    """
    if ranking.pairs.empty:
        raise InputError("there is only one configuration, so there is nothing to plan")
    if ranking.patients < 2:
        raise InputError("the variance between patients is unknown: at least two patients are needed")
    if not all(np.isfinite(value) for value in (difference, run_sd) if value is not None):
        raise InputError("the difference and the SD between runs must be finite")
    if not ranking.alpha < power < 1:
        raise InputError(f"power must be between {ranking.alpha:g} (the level of significance) and 1, not {power}")
    known_sd = ranking.run_sd if run_sd is None else run_sd
    stochastic = _stochastic(ranking)
    rows, verdicts = [], []
    for name, measured, pair_sd, stochastic_count, run_by_run in _pairs(ranking, stochastic):
        target = measured if difference is None else abs(difference)
        numbers: dict[int, int | None] = {}
        if run_by_run:
            rows.append(_row(name, target, pair_sd, numbers, lower_bound=False))
            verdicts.append(f"{name}: not planned, because they share weights and are compared run by run.")
            continue
        for seeds in SEEDS:
            if seeds * ranking.folds == 1 and stochastic_count > 0:
                continue
            variance = (known_sd or 0.0) ** 2
            training = Training(ranking.folds, seeds, variance, int(stochastic.sum()), len(stochastic), stochastic_count)
            level = ranking.alpha / len(ranking.pairs)
            numbers[seeds] = patients_for(power, target, pair_sd, training, level, ranking.patients_needed)
        lower_bound = known_sd is None and stochastic_count > 0
        rows.append(_row(name, target, pair_sd, numbers, lower_bound))
        verdicts.append(_verdict(name, target, numbers, lower_bound, ranking.patients, power))
    return Plan(pd.DataFrame(rows), _basis(ranking, power, difference, run_sd), verdicts[0])


def _stochastic(ranking: Ranking) -> pd.Series:
    """Per configuration: is its training stochastic? A run SD of 0 without a repeated run marks deterministic training."""
    table = ranking.table.set_index("config")
    return (table["run_sd"] != 0) | (table["runs"] > ranking.folds)


def _pairs(ranking: Ranking, stochastic: pd.Series) -> list[tuple[str, float, float, float, bool]]:
    """(name, |difference|, s_pair, number of stochastic configurations in the pair, is it compared run by run?); `ranking.pairs`
    begins with the pairs of the first configuration."""
    first, *others = ranking.table["config"]
    rows = ranking.pairs.iloc[: len(others)]
    counts = float(stochastic[first]) + stochastic[others].to_numpy(float)
    values = np.column_stack([rows["difference"].abs(), rows["patient_sd"], counts, rows["run_by_run"]])
    named = {f"{first} vs {others[0]}": values[0]}
    if len(others) > 1:
        named |= {f"{first} vs the median of the others": np.median(values, axis=0), f"{first} vs {others[-1]}": values[-1]}
    return [(name, *map(float, row[:3]), bool(row[3] > 0.5)) for name, row in named.items()]  # type: ignore[misc]


def _row(name: str, difference: float, pair_sd: float, numbers: dict[int, int | None], lower_bound: bool) -> dict[str, str]:
    none = "tie" if difference == 0 else "more seeds"
    row = {"pair": name, "difference": f"{difference:.3g}", "patient SD": f"{pair_sd:.3g}"}
    for seeds in SEEDS:
        number = numbers.get(seeds)
        text = none if number is None else f">= {number}" if lower_bound else str(number)
        row[count(seeds, "seed")] = text if seeds in numbers else "not possible"
    return row


def _basis(ranking: Ranking, power: float, difference: float | None, run_sd: float | None) -> str:
    if run_sd is not None:
        runs = f"SD between training runs: {run_sd:.3g} (given)."
    elif ranking.run_sd is not None:
        runs = f"SD between training runs: {ranking.run_sd:.3g} (measured; 0: not distinguishable from 0)."
    else:
        runs = (
            "The SD between training runs is unknown: the numbers assume 0 and are lower bounds. Two or more seeds would measure "
            "it; --run-sd sets it."
        )
    measures = "A single seed cannot measure the variance between training runs."
    if ranking.folds > 1:
        measures = "The effect of training sets is not included; it makes more patients or folds necessary."
    selected = (
        " The measured difference is optimistic because the first configuration was selected as the best; use --difference to "
        "set the smallest difference that matters."
    )
    return (
        f"{ranking.label}: patients needed for a power of {100 * power:g} %, the probability that the pair is significantly "
        f"different, if each configuration is trained with these seeds per fold (folds: {ranking.folds}), at the "
        f"{100 * ranking.alpha:g} % level corrected for {count(len(ranking.pairs), 'comparison')} (Holm's first and strictest "
        f"step). {measures} {runs}{selected if difference is None else ''}"
    )


def _verdict(name: str, difference: float, numbers: dict[int, int | None], lower_bound: bool, patients: int, power: float) -> str:
    """One sentence about a pair: whether the available patients suffice, else the smallest number that does."""
    pair = f"{name} (difference {difference:.3g})"
    found = {seeds: number for seeds, number in numbers.items() if number is not None}
    if difference == 0:
        return f"{pair}: no number of patients makes a tie significant."
    if not found:
        most = count(SEEDS[-1], "seed")
        return f"{pair}: even with {most}, no number of patients is enough: runs vary too much for this difference."
    target = f"for a power of {100 * power:g} %"
    seeds = min(found, key=lambda s: found[s])
    available = f"{patients} are available"
    if lower_bound:
        return f"{pair}: at least {found[seeds]} patients are needed {target}, more if training runs differ; {available}."
    if enough := [s for s, number in found.items() if number <= patients]:
        return f"{pair}: the {patients} available patients are enough with {count(enough[0], 'seed')} {target}."
    return f"{pair}: {found[seeds]} patients with {count(seeds, 'seed')} are needed {target}; {available}."
