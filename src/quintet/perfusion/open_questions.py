"""The reference's open questions, answered from the ranking, and recommendations."""

import numpy as np
import pandas as pd
from scipy import stats

from quintet.params import Perfusion
from quintet.perfusion.published import LAST, PUBLISHED, RERUN, TOP
from quintet.ranking import Ranking


def difference(table: Ranking, config: str, other: str) -> tuple[float, float, bool]:
    """(config - other, half width of its interval, significant under the decision rule)."""
    pairs = table.pairs
    pair = pairs[pairs["first"].isin([config, other]) & pairs["second"].isin([config, other])].iloc[0]
    sign = 1.0 if pair["first"] == config else -1.0
    half_width = float(stats.t.ppf(1 - table.alpha / 2, pair["df"]) * pair["se"])
    return sign * float(pair["difference"]), half_width, bool(pair["significant"])


def open_questions(table: Ranking, params: Perfusion) -> list[str]:
    """One paragraph per question: the answer by the decision rule, or what is needed to answer it."""
    order = trained(table, params)
    answers = [_significant(table, order)]
    if LAST in order and len(order) > 1:
        answers.append(_anomaly(table, order))
    if set(TOP) < set(order):
        answers.append(_top_three(table, order, params))
    return answers


def trained(table: Ranking, params: Perfusion) -> list[str]:
    """The configurations by rank, without baselines and ensembles."""
    return [name for name in table.table["config"] if name in params.configs]


def _significant(table: Ranking, order: list[str]) -> str:
    pairs = table.pairs[table.pairs["first"].isin(order) & table.pairs["second"].isin(order)]
    count = f"{int(pairs['significant'].sum())} of {len(pairs)} pairs"
    if table.run_sd is not None:
        return f"Are the differences significant? {count} are significantly different."
    return (
        f"Are the differences significant? {count} of these trained models are significantly different. Without repeated seeds "
        "nothing can be concluded about the configurations."
    )


def _anomaly(table: Ranking, order: list[str]) -> str:
    others = [difference(table, name, LAST) for name in order if name != LAST]
    above, below = sum(s and d > 0 for d, _, s in others), sum(s and d < 0 for d, _, s in others)
    text = (
        f"Is {LAST} (published last with {PUBLISHED[LAST][0]}, then {RERUN[LAST]} in a second run) an anomaly? Here it has rank "
        f"{order.index(LAST) + 1} of {len(order)}; {above} of the others are significantly better, {below} significantly worse."
    )
    if table.run_sd is None:
        return f"{text} Two or more seeds are needed to see whether randomness in training could explain that."
    if table.run_sd == 0:
        return f"{text} Runs of one configuration differ by no more than the noise of their people's scores."
    jump, sd = abs(RERUN[LAST] - PUBLISHED[LAST][0]) / 100, np.sqrt(2) * table.run_sd
    chance = 100 * 2 * stats.norm.sf(jump / sd)
    return (
        f"{text} Two runs of one configuration differ with SD {sd:.4f}: a jump of {jump:.4f} has a probability of {chance:.2g} %."
    )


def _top_three(table: Ranking, order: list[str], params: Perfusion) -> str:
    missing = sorted(set(range(params.data.folds)) - set(params.sweep.folds))
    scope = f"Not answered, because folds {', '.join(map(str, missing))} were not run. So far: " if missing else ""
    places = ", ".join(f"{name} {order.index(name) + 1}" for name in TOP)
    rest = [name for name in order if name not in TOP]
    won = sum(s and d > 0 for name in TOP for other in rest for d, _, s in [difference(table, name, other)])
    return (
        f"Do the published first three hold in {params.data.folds}-fold cross-validation? {scope}Their ranks here: {places} of "
        f"{len(order)}; {won} of their {len(TOP) * len(rest)} comparisons with the others are significant in their favour."
    )


def recommendations(table: Ranking, costs: pd.DataFrame, params: Perfusion) -> list[str]:
    """By score, by run-to-run SD and by cost; each only where the decision rule (for SDs: an F test) supports it."""
    order = trained(table, params)
    if not table.decidable:
        undecided = f"none. With {table.patients} patients no difference can be significant; it takes {table.patients_needed}."
        return [f"By score: {undecided}", _most_reproducible(table, params), f"By cost: {undecided}"]
    tied = [name for name in order if name == order[0] or not difference(table, order[0], name)[2]]
    score = f"By score: {order[0]}; it is significantly better than all others."
    if len(tied) > 1:
        score = (
            f"By score: none. {order[0]} is first, but {len(tied) - 1} of the {len(order) - 1} others are not significantly "
            "different from it."
        )
    parameters = costs.loc[tied, "parameters"]
    smallest = [name for name in tied if parameters[name] == parameters.min()]  # in the order of the ranking
    cost = (
        f"By cost: {', '.join(smallest)} ({parameters.min():.0f} parameters), the smallest of the {len(tied)} that are not "
        "significantly different from the first."
    )
    return [score, _most_reproducible(table, params), cost]


def _most_reproducible(table: Ranking, params: Perfusion) -> str:
    runs = table.run_squares.loc[trained(table, params)].dropna().sort_values("square")
    if runs.empty:
        return "By run-to-run variation: unknown, because one seed cannot measure it."
    sds = np.sqrt(runs["square"])
    if least_variable(runs, table.alpha):
        return f"By run-to-run variation: {runs.index[0]}, SD between the means of its runs {sds.iloc[0]:.4f}."
    return (
        f"By run-to-run variation: none. SDs between the means of runs go from {sds.iloc[0]:.4f} ({runs.index[0]}) to "
        f"{sds.iloc[-1]:.4f} ({runs.index[-1]}), with {runs['df'].min():.3g} degrees of freedom or more: too few to distinguish "
        "the smallest from the next."
    )


def least_variable(runs: pd.DataFrame, alpha: float) -> bool:
    """Whether the first of some mean squares with their df, in ascending order, is significantly smaller than the second: an F
    test, two-sided, Bonferroni over those it was chosen from. Variances that are corrected for noise have no F distribution."""
    if len(runs) < 2 or runs["square"].iloc[1] == 0:
        return False
    (smallest, df), (second, second_df) = runs[["square", "df"]].iloc[:2].to_numpy()
    return bool(2 * stats.f.cdf(smallest / second, df, second_df) <= alpha / (len(runs) - 1))
