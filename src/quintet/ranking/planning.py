"""How many patients and seeds would separate the first configuration, from the variances that a ranking measured.

The rule that decides, for a study of another size: a difference is separated where |t| exceeds Student's quantile, with
    se^2 = s_pair^2 / patients + (s_run^2 of each configuration with chance in its training) / (folds x seeds)
and Satterthwaite's df. The level is alpha / pairs, Holm's first and most cautious step: later steps can only raise the power.
Power: noncentral t, in the direction of the difference. s_pair contains the patient x run noise of the seeds it was measured
with: the numbers are a little too large for more seeds than those, a little too small for fewer.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from quintet.errors import InputError
from quintet.ranking.table import Ranking

SEEDS = (1, 2, 3, 5, 10)
NEGLIGIBLE = 1e-6  # share of the run variance below which more patients change nothing


@dataclass(frozen=True)
class Plan:
    """`table`: one row a pair, in the columns '<n> seeds' the smallest number of patients or why there is none, as text."""

    table: pd.DataFrame
    basis: str
    verdict: str


def power_of(patients: int, difference: float, pair_sd: float, run_variance: float, run_df: float, level: float) -> float:
    """Chance that `difference` (> 0) is separated at the two-sided `level`; `run_variance`: what runs add to se^2."""
    of_patients = pair_sd**2 / patients
    se2 = of_patients + run_variance
    if se2 == 0:
        return 1.0
    uncertain = of_patients**2 / (patients - 1) + (run_variance**2 / run_df if run_variance else 0)
    df = se2**2 / uncertain
    return float(stats.nct.sf(stats.t.isf(level / 2, df), df, difference / math.sqrt(se2)))


def patients_for(
    power: float, difference: float, pair_sd: float, run_variance: float, run_df: float, level: float, least: int
) -> int | None:
    """Smallest number of patients, from `least`, with this power; None: no number, for a tie or because of the runs."""

    def reached(patients: int) -> float:
        return power_of(patients, difference, pair_sd, run_variance, run_df, level)

    if difference == 0:
        return None
    n = least  # doubled up to the first success: where run_df is tiny, power can fall again with more patients
    while reached(n) < power:
        if pair_sd**2 / n <= NEGLIGIBLE * run_variance:
            return None
        n *= 2
    between = range(max(n // 2 + 1, least), n)
    return between.start + bisect_left(between, power, key=reached)


def plan(ranking: Ranking, *, power: float = 0.8, difference: float | None = None, run_sd: float | None = None) -> Plan:
    """Plan for the first configuration against the second, the median of the others, and the last.

    `difference` replaces the measured ones, `run_sd` the measured one, both in the metric's unit. Without any run SD the plan
    takes 0 and says that its numbers are lower bounds. One seed decides only between configurations without chance in their
    training.
    """
    if ranking.pairs.empty:
        raise InputError("there is one configuration, so nothing to plan")
    if ranking.patients < 2:
        raise InputError("the variance between patients is not known: at least two patients are needed")
    if not ranking.alpha < power < 1:
        raise InputError(f"power {power} is not between the level {ranking.alpha:g} and 1")
    known = ranking.run_sd if run_sd is None else run_sd
    chance = _chance(ranking)
    rows, verdicts = [], []
    for name, apart, pair_sd, trained in _pairs(ranking, chance):
        wanted = apart if difference is None else abs(difference)
        numbers: dict[int, int | None] = {}
        for seeds in SEEDS:
            if seeds == 1 and trained > 0:
                continue
            run_df = chance.sum() * (seeds - 1) * ranking.folds
            run_variance = trained * (known or 0.0) ** 2 / (ranking.folds * seeds)
            level = ranking.alpha / len(ranking.pairs)
            numbers[seeds] = patients_for(power, wanted, pair_sd, run_variance, run_df, level, ranking.patients_needed)
        bound = known is None and trained > 0
        rows.append(_row(name, wanted, pair_sd, numbers, bound))
        verdicts.append(_verdict(f"{name}, {wanted:.3g} apart", wanted, numbers, bound, ranking.patients, power))
    return Plan(pd.DataFrame(rows), _basis(ranking, power, difference, run_sd), verdicts[0])


def _chance(ranking: Ranking) -> pd.Series:
    """By configuration: has its training chance in it? Without a repeated run the table's run SD is 0 only where it has none."""
    table = ranking.table.set_index("config")
    return (table["run_sd"] != 0) | (table["runs"] > ranking.folds)


def _pairs(ranking: Ranking, chance: pd.Series) -> list[tuple[str, float, float, float]]:
    """(name, |difference|, s_pair, configurations of the pair with chance in their training); `pairs` begins with the first's."""
    first, *others = ranking.table["config"]
    rows = ranking.pairs.iloc[: len(others)]
    trained = float(chance[first]) + chance[others].to_numpy(float)
    values = np.column_stack([rows["difference"].abs(), rows["patient_sd"], trained])
    named = {f"{first} vs {others[0]}": values[0]}
    if len(others) > 1:
        named |= {f"{first} vs the median of the others": np.median(values, axis=0), f"{first} vs {others[-1]}": values[-1]}
    return [(name, float(row[0]), float(row[1]), float(row[2])) for name, row in named.items()]


def _row(name: str, difference: float, pair_sd: float, numbers: dict[int, int | None], bound: bool) -> dict[str, str]:
    none = "no number" if difference == 0 else "more seeds"
    row = {"pair": name, "difference": f"{difference:.3g}", "patient SD": f"{pair_sd:.3g}"}
    for seeds in SEEDS:
        number = numbers.get(seeds)
        found = none if number is None else f">= {number}" if bound else str(number)
        row[_seeds(seeds)] = found if seeds in numbers else "cannot decide"
    return row


def _basis(ranking: Ranking, power: float, difference: float | None, run_sd: float | None) -> str:
    if run_sd is not None:
        runs = f"SD between training runs: {run_sd:.3g} (given)."
    elif ranking.run_sd is not None:
        runs = f"SD between training runs: {ranking.run_sd:.3g} (measured)."
    else:
        runs = (
            "The SD between training runs is not known: two or more seeds would show it, --run-sd sets it; the numbers take it "
            "as 0 and are lower bounds."
        )
    luck = " A measured difference of the first is flattered by its being first: --difference asks for one worth finding."
    return (
        f"{ranking.metric}: patients for a chance of {100 * power:g} % that the pair is separated, each configuration trained "
        f"with these seeds per fold (folds: {ranking.folds}), at {100 * ranking.alpha:g} % over {len(ranking.pairs)} "
        f"comparisons (Holm's first, most cautious step). One seed shows nothing of the variance between runs. {runs}"
        + (luck if difference is None else "")
    )


def _verdict(lead: str, difference: float, numbers: dict[int, int | None], bound: bool, patients: int, power: float) -> str:
    """One sentence about a pair: what the patients at hand allow, else the fewest patients."""
    found = {seeds: number for seeds, number in numbers.items() if number is not None}
    chance = f"for a chance of {100 * power:g} %"
    if difference == 0:
        return f"{lead}: no number of patients separates a tie."
    if not found:
        return (
            f"{lead}: with {_seeds(SEEDS[-1])} the runs differ too much for any number of patients; more seeds would be needed."
        )
    seeds = min(found, key=lambda s: found[s])
    if bound:
        return (
            f"{lead}: at least {found[seeds]} patients are needed {chance}, more if training runs differ; there are {patients}."
        )
    if enough := [s for s, number in found.items() if number <= patients]:
        return f"{lead}: the {patients} patients at hand are enough with {_seeds(enough[0])} {chance}."
    return f"{lead}: {found[seeds]} patients with {_seeds(seeds)} are needed {chance}; there are {patients}."


def _seeds(number: int) -> str:
    return f"{number} seed" + ("" if number == 1 else "s")
