"""What the ranking answers: the reference's open questions, and what can be recommended."""

import numpy as np
import pandas as pd
from scipy import stats

from quintet.params import Perfusion
from quintet.perfusion.published import LAST, PUBLISHED, RERUN, TOP
from quintet.ranking import Ranking


def difference(table: Ranking, config: str, other: str) -> tuple[float, float, bool]:
    """(config - other, half of its interval, separated by the decision rule)."""
    pairs = table.pairs
    pair = pairs[pairs["first"].isin([config, other]) & pairs["second"].isin([config, other])].iloc[0]
    sign = 1.0 if pair["first"] == config else -1.0
    half = float(stats.t.ppf(1 - table.alpha / 2, pair["df"]) * pair["se"])
    return sign * float(pair["difference"]), half, bool(pair["separated"])


def open_questions(table: Ranking, p: Perfusion) -> list[str]:
    """One answer each, from the decision rule, or what would answer it."""
    order = list(table.table["config"])
    answers = [_significant(table)]
    if LAST in order and len(order) > 1:
        answers.append(_anomaly(table, order))
    if set(TOP) < set(order):
        answers.append(_top_three(table, order, p))
    return answers


def _significant(table: Ranking) -> str:
    text = f"Are the differences significant? {int(table.pairs['separated'].sum())} of {len(table.pairs)} pairs"
    if table.run_sd is not None:
        return f"{text} are separated."
    return f"{text} of these trained models are separated. Of configurations nothing can be said without repeated seeds."


def _anomaly(table: Ranking, order: list[str]) -> str:
    others = [difference(table, name, LAST) for name in order if name != LAST]
    above, below = sum(s and d > 0 for d, _, s in others), sum(s and d < 0 for d, _, s in others)
    text = (
        f"Is {LAST} (published last with {PUBLISHED[LAST][0]}, then {RERUN[LAST]} when run again) an anomaly? Here it has rank "
        f"{order.index(LAST) + 1} of {len(order)}; {above} of the others are separated above it, {below} below it."
    )
    if not table.run_sd:
        return f"{text} Whether chance in training could have done that needs two or more seeds."
    jump, sd = abs(RERUN[LAST] - PUBLISHED[LAST][0]) / 100, np.sqrt(2) * table.run_sd
    chance = 100 * 2 * stats.norm.sf(jump / sd)
    return f"{text} Two runs of one configuration differ with SD {sd:.4f}: a jump of {jump:.4f} has a chance of {chance:.2g} %."


def _top_three(table: Ranking, order: list[str], p: Perfusion) -> str:
    missing = sorted(set(range(p.folds)) - set(p.sweep.folds))
    scope = f"Not answered, folds {', '.join(map(str, missing))} were not run; so far: " if missing else ""
    places = ", ".join(f"{name} {order.index(name) + 1}" for name in TOP)
    rest = [name for name in order if name not in TOP]
    won = sum(s and d > 0 for name in TOP for other in rest for d, _, s in [difference(table, name, other)])
    return (
        f"Do the published first three hold in {p.folds}-fold cross-validation? {scope}Their ranks here: {places} of "
        f"{len(order)}; {won} of their {len(TOP) * len(rest)} comparisons with the others are separated in their favour."
    )


def recommendations(table: Ranking, costs: pd.DataFrame, p: Perfusion) -> list[str]:
    """By score, by run-to-run SD, by cost; each only where the decision rule (for SDs: an F test) supports it."""
    order = list(table.table["config"])
    level = [name for name in order if name == order[0] or not difference(table, order[0], name)[2]]
    score = f"By score: {order[0]}; the decision rule separates it from all others."
    if len(level) > 1:
        score = (
            f"By score: none. {order[0]} is first, but {len(level) - 1} of the {len(order) - 1} others are not separated from it."
        )
    cheapest = costs.loc[level].sort_values(["parameters", "train_seconds"]).index[0]
    cost = (
        f"By cost: {cheapest} ({costs.loc[cheapest, 'parameters']:.0f} parameters, {costs.loc[cheapest, 'train_seconds']:.0f} "
        f"s), the smallest and then fastest of the {len(level)} that are not separated from the first."
    )
    return [score, _steadiest(table, p), cost]


def _steadiest(table: Ranking, p: Perfusion) -> str:
    df = len(p.sweep.folds) * (len(p.sweep.seeds) - 1)
    if df < 1:
        return "By steadiness: not known; one seed shows no run-to-run SD."
    sds = table.table.set_index("config")["run_sd"].sort_values()
    smallest, following = (*sds.iloc[:2], np.nan)[:2]
    # the smallest of several against the next: two-sided, Bonferroni over those it was chosen from
    if following > 0 and 2 * stats.f.cdf((smallest / following) ** 2, df, df) <= table.alpha / (len(sds) - 1):
        return f"By steadiness: {sds.index[0]}, run SD {smallest:.4f}."
    return (
        f"By steadiness: none. Run SDs go from {smallest:.4f} ({sds.index[0]}) to {sds.iloc[-1]:.4f} ({sds.index[-1]}), each "
        f"with {df} degrees of freedom: too few to tell the smallest from the next."
    )
