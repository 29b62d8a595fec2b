"""The verdict of a ranking in words: what was compared, who is first, and which differences are significant."""

import pandas as pd

from quintet.ranking.decision import Decision
from quintet.ranking.scores import Scores


def verdict(scores: Scores, decision: Decision, table: pd.DataFrame, *, label: str, lower_is_better: bool, alpha: float) -> str:
    """A few sentences for clinicians; `table` is that of the ranking, best configuration first."""
    min_runs, max_runs = int(table["runs"].min()), int(table["runs"].max())
    models = count(max_runs, "trained model") if min_runs == max_runs else f"{min_runs} to {max_runs} trained models"
    basis = (
        f"Ranked by {label} ({'lower' if lower_is_better else 'higher'} is better) on {count(decision.patients, 'patient')} "
        f"({count(scores.cases, 'case')}), {count(scores.folds, 'fold')}, {models} per configuration"
    )
    excluded = f" Excluded: {count(scores.excluded, 'patient')} not tested in every configuration." if scores.excluded else ""
    return f"{basis}: {_finding(scores, decision, table, alpha)}{excluded}{run_caveat(scores, decision, table)}"


def _finding(scores: Scores, decision: Decision, table: pd.DataFrame, alpha: float) -> str:
    first, configs = scores.configs[0], len(scores.configs)
    if configs == 1:
        return f"{first} is the only configuration (mean {decision.mean[0]:.4g}), so there is nothing to compare."
    best = table.loc[table["rank"] == 1, "config"].tolist()
    lead = f"{_join(best)} {'is first' if len(best) == 1 else 'share first place'} (mean {decision.mean[0]:.4g})"
    if not decision.decidable:
        return (
            f"no difference was established. {lead}, but with {count(decision.patients, 'patient')} and "
            f"{count(configs * (configs - 1) // 2, 'comparison')}, even a difference in the same direction in every patient "
            f"could be due to chance; at least {decision.pairs.patients_needed} patients tested in every configuration are "
            "needed."
        )
    level = f"at the {100 * alpha:g} % level, corrected for all comparisons (Holm)"
    similar = [c for c, significant in zip(scores.configs, decision.significant[0], strict=True) if not significant][1:]
    if not similar:
        return f"{lead} and is significantly different from every other configuration {level}."
    but = f"{lead}, but {'' if len(best) == 1 else f'{first} is '}not significantly different from"
    if len(similar) == configs - 1:
        return f"{but} any other configuration {level}."
    return f"{but} {_join(similar, 'or')}; it is significantly different from all others {level}."


def run_caveat(scores: Scores, decision: Decision, table: pd.DataFrame) -> str:
    """What the verdict is about, if not about configurations in general: one training set, or the trained models."""
    if len(scores.configs) == 1:
        return ""
    if decision.folds == 1:
        return " With one fold, it is about models trained on this training set." + _seed_caveat(scores, decision, table)
    if decision.run_variance is None:
        return " No seed was repeated: the variation between training runs is measured together with that between folds."
    return _seed_caveat(scores, decision, table)


def _seed_caveat(scores: Scores, decision: Decision, table: pd.DataFrame) -> str:
    if decision.run_variance is None:
        return (
            " The variation between training runs is unknown because no seed was repeated, so this result is about these trained "
            "models, not about the configurations: training again could change the order. Two or more seeds per fold would "
            "measure it."
        )
    single = table.loc[table["run_sd"].isna() & ~scores.deterministic, "config"].tolist()
    if single:
        verb = "has" if len(single) == 1 else "have"
        return f" {_join(single)} {verb} no repeated seed; the run-to-run variance of the other configurations is used instead."
    return ""


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _join(names: list[str], conjunction: str = "and") -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {conjunction} {names[-1]}"
