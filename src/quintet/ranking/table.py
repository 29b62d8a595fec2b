"""From the tidy table to a ranking: the decision rule on the common patients, described by intervals and a bootstrap."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import expit, logit

from quintet.ranking.decision import Decision, Family, compact_letters, decide
from quintet.ranking.paper import methods
from quintet.ranking.questions import Question, answer, answerable
from quintet.ranking.scores import Scores, competition_ranks, mean_over, read_scores
from quintet.ranking.variance import Floats, patient_means
from quintet.ranking.verdict import run_caveat, verdict


@dataclass(frozen=True)
class Ranking:
    """`table` has one row per configuration, best first; `pairs` one row per pair; `answers` one row per question that was asked
    beforehand; `by_patient` is [configs, patients].

    Means are means of patient means. NaN: unknown (run_sd, published; patient_sd of a single patient; covered, without a floor
    or a ceiling).
    """

    metric: str  # its name in the tidy table
    label: str  # its name for readers
    lower_is_better: bool
    alpha: float
    table: pd.DataFrame
    pairs: pd.DataFrame
    answers: pd.DataFrame
    by_patient: pd.DataFrame
    verdict: str
    methods: str  # the paragraph for a paper
    note: str  # a sentence on the metric, which `methods` contains
    varies_over: str  # what the intervals cover: "patients", or "patients and training runs"
    caveat: str  # what the verdict and the answers are about, if not about configurations in general
    patients: int
    patients_excluded: int
    patients_needed: int
    cases: int
    folds: int
    run_sd: float | None  # pooled over configurations; None: unknown because no seed was repeated
    run_squares: pd.DataFrame  # index: config; mean square between runs and its df, which an F test may compare
    kendall_tau: float | None
    floor: str | None  # a trivial method, one of the configurations
    ceiling: str | None  # what the data allow at best; in no comparison, and not in `table`
    ceiling_mean: float

    @property
    def decidable(self) -> bool:
        """Whether there are enough patients for any difference to be significant."""
        return self.patients >= self.patients_needed

    def with_ceiling(self) -> pd.DataFrame:
        """`table` with the ceiling as its last row, which has neither rank nor interval."""
        whole = {name: "Int64" for name in ("rank", "rank_low", "rank_high", "runs")}  # integers that may be missing
        table = self.table.astype(whole)
        if self.ceiling is None:
            return table
        row = pd.DataFrame({"config": [self.ceiling], "mean": [self.ceiling_mean]}).reindex(columns=table.columns)
        return pd.concat([table, row.astype(table.dtypes)], ignore_index=True)


def rank(
    table: pd.DataFrame,
    metric: str,
    *,
    lower_is_better: bool,
    label: str | None = None,
    alpha: float = 0.05,
    published: Mapping[str, float] | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
    deterministic: Collection[str] = (),
    same_run_as: Mapping[str, str] | None = None,
    bounds: tuple[float, float] | None = None,
    questions: Sequence[Question] = (),
    pseudo_values: str | None = None,
    note: str = "",
    floor: str | None = None,
    ceiling: str | None = None,
) -> Ranking:
    """Rank the configurations of a tidy table (`results.COLUMNS`) by `metric`.

    `label`: the metric in words, for verdicts, headings and axes, without its unit; default: `metric` with spaces.
    `published`: configuration -> published value. `deterministic`: configurations whose training is deterministic, so that they
    add no run variance. A single run of any other configuration adds the whole pooled run variance. `same_run_as`:
    configuration -> the one whose weights it shares or starts from, with the same fold and seed. `bounds`: the metric's
    range, which intervals do not leave. `questions`: comparisons that were planned; those about a configuration that the table
    lacks are left out. `pseudo_values`: the metric with the patients' jackknife pseudo-values, if the score of `metric` depends
    on other patients (see read_scores). `note`: a sentence on the metric for the paragraph on methods. `bootstrap`: draws.
    `floor`: the configuration that any method should beat; `ceiling`: the one that shows what the data allow at best, which is
    reported beside the others and compared with none; both are ignored where the table lacks them.
    """
    label = label or metric.replace("_", " ")
    sign = 1.0 if lower_is_better else -1.0
    ceiling_rows = table["config"].astype(str) == (ceiling or "")
    table, reference = table[~ceiling_rows], table[ceiling_rows]
    scores = read_scores(table, metric, sign, {*deterministic} - {ceiling}, pseudo_values)
    floor = floor if floor in scores.configs else None
    ceiling = None if reference.empty else ceiling
    ceiling_mean = mean_over(reference, pseudo_values or metric, str(ceiling), scores.patients)
    related = _families(scores.configs, same_run_as or {})
    asked, weights = answerable(questions, scores.configs)
    decision = decide(scores.values, alpha=alpha, deterministic=scores.deterministic, related=related, planned=weights)
    ranks = bootstrap_ranks(scores.values, sign, draws=bootstrap, seed=seed)
    summary = _config_table(scores, decision, sign, ranks, alpha, published or {}, bounds)
    summary["covered"] = _covered(summary, floor, ceiling_mean)
    return Ranking(
        metric=metric,
        label=label,
        lower_is_better=lower_is_better,
        alpha=alpha,
        table=summary,
        pairs=_pair_table(scores.configs, decision.pairs),
        answers=answer(asked, decision.planned, patients=decision.patients, sign=sign, alpha=alpha),
        by_patient=pd.DataFrame(patient_means(scores.values), index=scores.configs, columns=scores.patients),
        verdict=verdict(scores, decision, summary, label=label, lower_is_better=lower_is_better, alpha=alpha),
        methods=methods(
            scores,
            decision,
            label=label,
            alpha=alpha,
            paired_runs=bool(decision.pairs.run_by_run.any()),
            note=note,
            bounded=bounds is not None,
        ),
        note=note,
        varies_over="patients" + " and training runs" * decision.runs_vary,
        caveat=run_caveat(scores, decision, summary),
        patients=decision.patients,
        patients_excluded=scores.excluded,
        patients_needed=decision.pairs.patients_needed,
        cases=scores.cases,
        folds=scores.folds,
        run_sd=None if decision.run_variance is None else float(np.sqrt(decision.run_variance)),
        run_squares=pd.DataFrame({"square": decision.config_run_square, "df": decision.config_run_df}, index=scores.configs),
        kendall_tau=_kendall_tau(summary, sign),
        floor=floor,
        ceiling=ceiling,
        ceiling_mean=ceiling_mean,
    )


def _families(configs: list[str], same_run_as: Mapping[str, str]) -> list[int]:
    """One number per configuration, the same for all that descend from one."""

    def root(config: str) -> str:
        return root(same_run_as[config]) if same_run_as.get(config, config) != config else config

    roots = [root(config) for config in configs]
    return [roots.index(r) for r in roots]


def bootstrap_ranks(values: Floats, sign: float, *, draws: int, seed: int) -> Floats:
    """Ranks [draws, configs] of resampled `values` [configs, runs, patients]: each draw resamples the patients (the same for all
    configurations) and, per configuration, the runs among those that tested the same patients.

    Two-way bootstrap: Owen 2007, doi:10.1214/07-AOAS122.
    """
    rng = np.random.default_rng(seed)
    configs, runs, n = values.shape
    weight = rng.multinomial(n, np.full(n, 1 / n), size=draws) / n  # [draws, patients]
    means = np.empty((draws, configs))
    for c, own_means in enumerate(patient_means(values)):
        tested = ~np.isnan(values[c])
        counts = np.zeros((draws, runs))
        _, block = np.unique(tested, axis=0, return_inverse=True)
        for b in np.unique(block):
            members = np.flatnonzero(block == b)
            counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=draws)
        times = counts @ tested
        resampled = np.where(times > 0, counts @ np.where(tested, values[c], 0) / np.maximum(times, 1), own_means)
        means[:, c] = (weight * resampled).sum(-1)
    return competition_ranks(sign * means)


def _config_table(
    scores: Scores,
    decision: Decision,
    sign: float,
    ranks: Floats,
    alpha: float,
    published: Mapping[str, float],
    bounds: tuple[float, float] | None,
) -> pd.DataFrame:
    over_cases = scores.rows.groupby(["config", "group", "case"])["value"].mean().groupby("config").mean()
    low, high = np.quantile(ranks, [alpha / 2, 1 - alpha / 2], axis=0, method="inverted_cdf").astype(int)
    first = ranks == 1
    lower, upper = _interval(decision.mean, decision.half_width, bounds)
    return pd.DataFrame(
        {
            "rank": competition_ranks(sign * decision.mean).astype(int),
            "config": scores.configs,
            "mean": decision.mean,
            "low": lower,
            "high": upper,
            "group": compact_letters(decision.significant),
            "mean_over_cases": over_cases[scores.configs].to_numpy(),
            "patient_sd": _finite_or_nan(np.sqrt(decision.patient_variance)),
            "run_sd": np.where(scores.deterministic, 0, np.sqrt(decision.config_run_variance)),
            "rank_low": low,
            "rank_high": high,
            "first_share": (first / first.sum(1, keepdims=True)).mean(0),
            "runs": (~np.isnan(scores.values)).any(-1).sum(-1),
            "published": [float(published.get(c, np.nan)) for c in scores.configs],
        }
    )


def _covered(table: pd.DataFrame, floor: str | None, ceiling_mean: float) -> pd.Series:
    """The share of the way from the floor's mean to the ceiling's; NaN where one of them is unknown."""
    floor_mean = table.loc[table["config"] == floor, "mean"].sum() if floor else np.nan
    return (table["mean"] - floor_mean) / (ceiling_mean - floor_mean) + 0.0  # without the sign of -0


def _interval(mean: Floats, half_width: Floats, bounds: tuple[float, float] | None) -> tuple[Floats, Floats]:
    """mean +- half_width, with `bounds` on the logit scale (delta method), so that the interval stays inside."""
    if bounds is None:
        return mean - half_width, mean + half_width
    scale = bounds[1] - bounds[0]
    share = (mean - bounds[0]) / scale
    inside = (share > 0) & (share < 1) & (half_width > 0)
    p = np.where(inside, share, 0.5)
    half = half_width / (scale * p * (1 - p))
    low, high = (bounds[0] + scale * expit(logit(p) + sign * half) for sign in (-1, 1))
    return np.where(inside, low, mean), np.where(inside, high, mean)


def _pair_table(configs: list[str], pairs: Family) -> pd.DataFrame:
    """One row per pair, the better-ranked configuration first; difference is first minus second, patient_sd is s_pair."""
    i, j = np.triu_indices(len(configs), 1)
    columns = {name: getattr(pairs, name) for name in ("difference", "se", "df", "p", "p_holm", "significant", "run_by_run")}
    names = np.array(configs, dtype=object)
    patient_sd = _finite_or_nan(np.sqrt(pairs.patient_variance))
    return pd.DataFrame({"first": names[i], "second": names[j], **columns, "patient_sd": patient_sd})


def _finite_or_nan(values: Floats) -> Floats:
    return np.where(np.isfinite(values), values, np.nan)


def _kendall_tau(table: pd.DataFrame, sign: float) -> float | None:
    """Kendall's tau-b between the measured and the published order; None unless at least two configurations differ in both."""
    both = table.dropna(subset=["published"])
    if both["published"].nunique() < 2 or both["rank"].nunique() < 2:
        return None
    return float(stats.kendalltau(both["rank"], sign * both["published"]).statistic)
