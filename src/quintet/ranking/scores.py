"""The scores to be ranked, taken from the tidy table: cases averaged, patients that all configurations share, best first."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from quintet.errors import InputError
from quintet.ranking.variance import ROUND_OFF, Bools, Floats, patient_means


@dataclass(frozen=True)
class Scores:
    """`values` [configs, runs, patients], best configuration first; NaN where a run did not test a patient."""

    values: Floats
    configs: list[str]
    patients: list[str]
    deterministic: Bools  # [configs]
    rows: pd.DataFrame  # the tidy rows of the common patients
    excluded: int  # patients that some configuration was not tested on

    @property
    def cases(self) -> int:
        return len(self.rows[["group", "case"]].drop_duplicates())

    @property
    def folds(self) -> int:
        return int(self.rows["fold"].nunique())


def read_scores(
    table: pd.DataFrame, metric: str, sign: float, deterministic: Collection[str], pseudo_values: str | None = None
) -> Scores:
    """Scores of `metric` in a tidy table. `sign` is 1 where lower is better, -1 where higher is better.

    `pseudo_values` names the metric whose values replace the patients' means: one row per patient and run, with the same mean
    over the run's patients.

    Raises InputError where the metric is absent, a value is missing, or the configurations have no patient in common.
    """
    rows = _checked_rows(table, metric)
    by_patient = rows if pseudo_values is None else _checked_rows(table, pseudo_values)
    patients = {str(config): set(group["group"]) for config, group in by_patient.groupby("config")}
    if unknown := sorted(set(deterministic) - set(patients)):
        raise InputError(f"deterministic: {unknown} not in the table, which has {sorted(patients)}")
    common = sorted(set.intersection(*patients.values()))
    if not common:
        raise InputError(f"{metric}: no patient was tested in every configuration{_explain_no_overlap(patients)}")
    rows, by_patient = (t[t["group"].isin(common)] for t in (rows, by_patient))
    means = by_patient.groupby(["config", "fold", "seed", "group"])["value"].mean().reset_index()
    config, names = pd.factorize(means["config"], sort=True)
    patient, _ = pd.factorize(means["group"], sort=True)
    run = means.groupby(["fold", "seed"]).ngroup().to_numpy()
    values = np.full((len(names), run.max() + 1, len(common)), np.nan)
    values[config, run, patient] = means["value"]
    order = np.argsort(competition_ranks(sign * patient_means(values).mean(-1)), kind="stable")
    configs = [str(names[i]) for i in order]
    excluded = len(set.union(*patients.values())) - len(common)
    return Scores(values[order], configs, common, np.array([c in deterministic for c in configs]), rows, excluded)


def mean_over(table: pd.DataFrame, metric: str, config: str, patients: Collection[str]) -> float:
    """The mean of one configuration's patient means, over `patients`; NaN where the table lacks the configuration.

    Raises InputError if the configuration was not tested on one of them.
    """
    own = table[table["config"].astype(str) == config]
    if own.empty:
        return float("nan")
    means = _checked_rows(own, metric).groupby("group")["value"].mean()
    if missing := sorted(set(patients) - set(means.index)):
        raise InputError(f"{metric}: {config} was not tested on patient {missing[0]}, which the other configurations share")
    return float(means[list(patients)].mean())


def competition_ranks(means: Floats) -> Floats:
    """Ranks from 1 along the last axis, smallest first; means that differ by rounding errors only share the smaller rank."""
    scale = np.abs(means).max() or 1.0
    return np.asarray(stats.rankdata(np.round(means / scale / ROUND_OFF), axis=-1, method="min"), dtype=float)


def _checked_rows(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    rows = table[table["metric"] == metric]
    if rows.empty:
        raise InputError(f"metric {metric!r} is not in the table; it has {sorted(table['metric'].unique())}")
    if rows["study"].nunique() > 1:
        raise InputError(f"only one study can be ranked at a time, the table has {sorted(rows['study'].unique())}")
    invalid = rows[~np.isfinite(rows["value"]) | rows[["config", "fold", "seed", "group"]].isna().any(axis=1)]
    if len(invalid):
        row = invalid.iloc[0]
        raise InputError(
            f"{metric}: {len(invalid)} value(s) missing or not finite, the first in config {row['config']}, case {row['case']} "
            f"(fold {row['fold']}, seed {row['seed']}, group {row['group']}): evaluate again, or assign failed cases a score"
        )
    return rows.astype({"config": str, "group": str})


def _explain_no_overlap(patients: dict[str, set[str]]) -> str:
    culprits = [c for c in patients if set.intersection(*(patients[other] for other in patients if other != c))]
    without = f"; the configurations without {' or '.join(culprits)} have common patients" if culprits else ""
    return f"{without} (patients: {', '.join(f'{config} {len(names)}' for config, names in patients.items())})"
