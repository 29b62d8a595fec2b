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
            f"{count(configs * (configs - 1) // 2, 'pair')} no difference can be significant, not even one in the same direction "
            f"in every patient; that takes {decision.pairs.patients_needed} patients or more, tested in every configuration."
        )
    level = f"at the {100 * alpha:g} % level, corrected for all pairs (Holm)"
    similar = [c for c, significant in zip(scores.configs, decision.significant[0], strict=True) if not significant][1:]
    if not similar:
        return f"{lead} and is significantly different from every other configuration {level}."
    but = f"{lead}, but not significantly different from"
    if len(best) > 1:
        but = f"{lead}. {first} is not significantly different from"
    if len(similar) == configs - 1:
        return f"{but} any other configuration {level}."
    return f"{but} {_join(similar, 'or')}, and significantly different from all others {level}."


def run_caveat(scores: Scores, decision: Decision, table: pd.DataFrame) -> str:
    """What the verdict is about, if not about configurations in general: one training set, or the trained models."""
    if len(scores.configs) == 1:
        return ""
    if decision.run_variance is None and (table["runs"] > decision.folds).any():
        return " With one patient per fold, the variance between training runs cannot be measured; more patients would show it."
    if decision.folds == 1:
        if decision.run_variance is None:
            return (
                " Each configuration was trained only once, on this training set, so the variance between training runs is "
                "unknown. The result applies to these trained models, not to the configurations: training again could change the "
                "order. Two or more seeds would measure it."
            )
        training_set = " With one fold, the result applies only to models trained on this training set."
        return training_set + _single_runs(scores, table)
    if decision.run_variance is None:
        return " No seed was repeated: the variance between training runs is measured together with that between folds."
    return _single_runs(scores, table)


def _single_runs(scores: Scores, table: pd.DataFrame) -> str:
    single = table.loc[table["run_sd"].isna() & ~scores.deterministic, "config"].tolist()
    if single:
        verb = "has" if len(single) == 1 else "have"
        return f" {_join(single)} {verb} no repeated seed: the run variance of the other configurations is used instead."
    return ""


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _join(names: list[str], conjunction: str = "and") -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {conjunction} {names[-1]}"
