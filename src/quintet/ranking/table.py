"""From the tidy table to a ranking: patients in common, the decision, and its description by bootstrap."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from quintet.errors import InputError
from quintet.ranking.decision import ROUND_OFF, Decision, Floats, decide, letters, patient_means
from quintet.ranking.verdict import Scores, verdict


@dataclass(frozen=True)
class Ranking:
    """`table` has one row a configuration, best first; `pairs` one row a pair; `by_patient` is configurations x patients.

    Means are means of patient means. NaN means: not known (run_sd, published; patient_sd of one patient).
    """

    metric: str
    lower_is_better: bool
    alpha: float
    table: pd.DataFrame
    pairs: pd.DataFrame
    by_patient: pd.DataFrame
    verdict: str
    patients: int
    patients_dropped: int
    patients_needed: int
    cases: int
    folds: int
    run_sd: float | None  # pooled over configurations; None: no repeated seed, so not known
    kendall_tau: float | None


def rank(
    table: pd.DataFrame,
    metric: str,
    *,
    lower_is_better: bool,
    alpha: float = 0.05,
    published: Mapping[str, float] | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
    deterministic: Collection[str] = (),
) -> Ranking:
    """Rank the configurations of a tidy table (`results.COLUMNS`) by `metric`.

    `published`: configuration -> published value. `deterministic`: configurations whose training has no chance in it (they
    add no run variance). One run of any other configuration adds the whole pooled run variance.
    """
    sign = 1.0 if lower_is_better else -1.0
    scores = _scores(_checked(table, metric), metric, sign, deterministic)
    decision = decide(scores.values, alpha=alpha, deterministic=scores.still)
    ranks = bootstrap_ranks(scores.values, sign, draws=bootstrap, seed=seed)
    summary = _table(scores, decision, sign, ranks, alpha, published or {})
    return Ranking(
        metric=metric,
        lower_is_better=lower_is_better,
        alpha=alpha,
        table=summary,
        pairs=_pairs(scores.configs, decision),
        by_patient=pd.DataFrame(patient_means(scores.values), index=scores.configs, columns=scores.patients),
        verdict=verdict(scores, decision, summary, metric=metric, lower_is_better=lower_is_better, alpha=alpha),
        patients=decision.patients,
        patients_dropped=scores.dropped,
        patients_needed=decision.needed,
        cases=scores.cases,
        folds=scores.folds,
        run_sd=None if decision.run_variance is None else float(np.sqrt(decision.run_variance)),
        kendall_tau=_kendall(summary, sign),
    )


def _checked(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    rows = table[table["metric"] == metric]
    if rows.empty:
        raise InputError(f"metric {metric!r} is not in the table; it has {sorted(table['metric'].unique())}")
    if rows["study"].nunique() > 1:
        raise InputError(f"one study at a time can be ranked, the table has {sorted(rows['study'].unique())}")
    bad = rows[~np.isfinite(rows["value"]) | rows[["config", "fold", "seed", "group"]].isna().any(axis=1)]
    if len(bad):
        one = bad.iloc[0]
        raise InputError(
            f"{metric}: {len(bad)} value(s) missing or not finite, the first in config {one['config']}, case {one['case']} "
            f"(fold {one['fold']}, seed {one['seed']}, group {one['group']}): evaluate it again, or give a failed case its score"
        )
    return rows.astype({"config": str, "group": str})


def _scores(rows: pd.DataFrame, metric: str, sign: float, deterministic: Collection[str]) -> Scores:
    """Average cases within (config, run, patient), keep the patients that every configuration has, and order by the mean."""
    has = {str(config): set(part["group"]) for config, part in rows.groupby("config")}
    if unknown := sorted(set(deterministic) - set(has)):
        raise InputError(f"deterministic names {unknown}, which the table lacks; it has {sorted(has)}")
    common = sorted(set.intersection(*has.values()))
    if not common:
        alone = [c for c in has if set.intersection(*(has[d] for d in has if d != c))]
        without = f"; without {' or '.join(alone)} there would be some" if alone else ""
        counts = ", ".join(f"{config} {len(patients)}" for config, patients in has.items())
        raise InputError(f"{metric}: no patient was tested in every configuration{without} (patients: {counts})")
    kept = rows[rows["group"].isin(common)]
    cells = kept.groupby(["config", "fold", "seed", "group"])["value"].mean().reset_index()
    config, names = pd.factorize(cells["config"], sort=True)
    patient, _ = pd.factorize(cells["group"], sort=True)
    run = cells.groupby(["fold", "seed"]).ngroup().to_numpy()
    values = np.full((len(names), run.max() + 1, len(common)), np.nan)
    values[config, run, patient] = cells["value"]
    order = np.argsort(_ranks(sign * patient_means(values).mean(-1)), kind="stable")
    configs = [str(names[i]) for i in order]
    still = np.array([c in deterministic for c in configs])
    return Scores(values[order], configs, common, still, kept, len(set.union(*has.values())) - len(common))


def _ranks(means: Floats) -> Floats:
    """Ranks from 1 along the last axis, smallest first; means that differ by round-off share the smaller rank."""
    scale = np.abs(means).max() or 1.0
    return np.asarray(stats.rankdata(np.round(means / scale / ROUND_OFF), axis=-1, method="min"), dtype=float)


def bootstrap_ranks(values: Floats, sign: float, *, draws: int, seed: int) -> Floats:
    """Ranks [draws, configs], redrawing patients (the same for all configurations) and, within each configuration, runs
    (among those that tested the same patients). Two-way bootstrap: Owen 2007, doi:10.1214/07-AOAS122.
    """
    rng = np.random.default_rng(seed)
    configs, runs, n = values.shape
    weight = rng.multinomial(n, np.full(n, 1 / n), size=draws) / n  # [draws, n]
    means = np.empty((draws, configs))
    for c, own in enumerate(patient_means(values)):
        seen = ~np.isnan(values[c])
        counts = np.zeros((draws, runs))
        _, block = np.unique(seen, axis=0, return_inverse=True)
        for b in np.unique(block):
            members = np.flatnonzero(block == b)
            counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=draws)
        times = counts @ seen
        drawn = np.where(times > 0, counts @ np.where(seen, values[c], 0) / np.maximum(times, 1), own)  # [draws, n]
        means[:, c] = (weight * drawn).sum(-1)
    return _ranks(sign * means)


def _table(
    scores: Scores, decision: Decision, sign: float, ranks: Floats, alpha: float, published: Mapping[str, float]
) -> pd.DataFrame:
    by_case = scores.rows.groupby(["config", "group", "case"])["value"].mean().groupby("config").mean()
    low, high = np.quantile(ranks, [alpha / 2, 1 - alpha / 2], axis=0, method="inverted_cdf").astype(int)
    first = ranks == 1
    return pd.DataFrame(
        {
            "rank": _ranks(sign * decision.mean).astype(int),
            "config": scores.configs,
            "mean": decision.mean,
            "low": decision.mean - decision.half_width,
            "high": decision.mean + decision.half_width,
            "group": letters(decision.separated),
            "mean_over_cases": by_case[scores.configs].to_numpy(),
            "patient_sd": _known(np.sqrt(decision.patient_variance)),
            "run_sd": np.where(scores.still, 0, np.sqrt(decision.own_run_variance)),
            "rank_low": low,
            "rank_high": high,
            "first_share": (first / first.sum(1, keepdims=True)).mean(0),
            "runs": (~np.isnan(scores.values)).any(-1).sum(-1),
            "published": [float(published.get(c, np.nan)) for c in scores.configs],
        }
    )


def _pairs(configs: list[str], decision: Decision) -> pd.DataFrame:
    """One row a pair, the better-ranked one first; the difference is first minus second, patient_sd is s_pair."""
    i, j = np.triu_indices(len(configs), 1)
    columns = {name: getattr(decision, name)[i, j] for name in ("difference", "se", "df", "p", "p_holm", "separated")}
    names = np.array(configs, dtype=object)
    return pd.DataFrame(
        {"first": names[i], "second": names[j], **columns, "patient_sd": _known(np.sqrt(decision.pair_variance[i, j]))}
    )


def _known(values: Floats) -> Floats:
    return np.where(np.isfinite(values), values, np.nan)


def _kendall(table: pd.DataFrame, sign: float) -> float | None:
    """Kendall's tau-b between measured and published order, where at least two configurations have both and differ."""
    both = table.dropna(subset=["published"])
    if both["published"].nunique() < 2 or both["rank"].nunique() < 2:
        return None
    return float(stats.kendalltau(both["rank"], sign * both["published"]).statistic)
