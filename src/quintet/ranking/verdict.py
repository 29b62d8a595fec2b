"""The sentences of a ranking: what was compared on what, who is first, and whether that means anything."""

from dataclasses import dataclass

import pandas as pd

from quintet.ranking.decision import Bools, Decision, Floats


@dataclass(frozen=True)
class Scores:
    """`values` [configs, runs, patients], best configuration first, NaN where a run did not test a patient."""

    values: Floats
    configs: list[str]
    patients: list[str]
    still: Bools
    rows: pd.DataFrame  # the tidy rows of the patients in common
    dropped: int  # patients that some configuration lacks

    @property
    def cases(self) -> int:
        return len(self.rows[["group", "case"]].drop_duplicates())

    @property
    def folds(self) -> int:
        return int(self.rows["fold"].nunique())


def verdict(scores: Scores, decision: Decision, table: pd.DataFrame, *, metric: str, lower_is_better: bool, alpha: float) -> str:
    """A few sentences that a clinician can read; `table` is the ranking's, best configuration first."""
    fewest, most = int(table["runs"].min()), int(table["runs"].max())
    models = _count(most, "trained model") if fewest == most else f"{fewest} to {most} trained models"
    basis = (
        f"{metric} ({'lower' if lower_is_better else 'higher'} is better), {_count(decision.patients, 'patient')} "
        f"({_count(scores.cases, 'case')}), {_count(scores.folds, 'fold')}, {models} per configuration"
    )
    dropped = f" {_count(scores.dropped, 'patient')} left out because some configuration lacks them." if scores.dropped else ""
    return f"{basis}: {_finding(scores, decision, table, alpha)}{dropped}{_run_caveat(scores, decision, table)}"


def _finding(scores: Scores, decision: Decision, table: pd.DataFrame, alpha: float) -> str:
    first, others = scores.configs[0], len(scores.configs) - 1
    best = table.loc[table["rank"] == 1, "config"].tolist()
    lead = f"{_listed(best)} {'is first' if len(best) == 1 else 'are first together'} (mean {decision.mean[0]:.4g})"
    if not others:
        return f"{first} is the only configuration (mean {decision.mean[0]:.4g}), so there is nothing to compare."
    if not decision.decidable:
        return (
            f"nothing can be decided. {lead}, but with {_count(decision.patients, 'patient')} and "
            f"{_count((others + 1) * others // 2, 'comparison')} even a difference that goes the same way in every patient "
            f"could be chance; at least {decision.needed} patients in common would be needed."
        )
    close = [c for c, apart in zip(scores.configs, decision.separated[0], strict=True) if not apart][1:]
    level = f"at {100 * alpha:g} % over all comparisons (Holm)"
    if not close:
        return f"{lead} and is separated from every other configuration {level}."
    rest = "none" if len(close) == others else "all others" if len(best) == 1 else f"the other {others - len(close)}"
    return f"{lead}, but the data do not separate {first} from {_listed(close)}; it is separated from {rest} {level}."


def _run_caveat(scores: Scores, decision: Decision, table: pd.DataFrame) -> str:
    if decision.run_variance is None and len(scores.configs) > 1:
        return (
            " How much a repeated training run would differ is not known, so this speaks of these trained models, not of the "
            "configurations: training again could change the order. Two or more seeds per fold would show it."
        )
    single = table.loc[table["run_sd"].isna() & ~scores.still, "config"].tolist()
    if single:
        return f" {_listed(single)} had no repeated run; the run-to-run variance of the others stands in."
    return ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
