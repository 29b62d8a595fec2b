"""The ranking of configurations and baselines, and the tables of its report."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from quintet import ranking
from quintet.comparison import Runs, evaluation_metrics, read_all_cases, read_cases, select_columns, training_metrics
from quintet.ct.metrics import KS, PSEUDO_VALUE
from quintet.pages import Section
from quintet.params import Ct, Params
from quintet.params.ct import BASELINES, ORACLE
from quintet.ranking import JACKKNIFE, Question, Ranking, is_better
from quintet.resampling import bootstrap_means, bootstrap_weights, percentile_interval

METRIC = "ndcg_at_10"
COSTS = {
    "train_seconds": "training, s",
    "evaluation_seconds_per_scan": "embedding, s per scan",
    "parameters": "parameters",
    "peak_memory_mb": "peak memory, MiB",
    "best_epoch": "best epoch (from 0)",
}
METRICS_AT_K = {"ndcg": "NDCG", "map": "mAP", "precision": "P", "recall": "R", "jaccard": "Jaccard"}

READING = """Each test scan is a query; its gallery consists of all test scans of other patients. A scan is relevant if it
shares a finding with the query or if both have none (Jaccard similarity above 0); its gain is that Jaccard similarity. AP@k
is normalised by min(k, relevant scans). Under ties every metric is its expectation over all orders of the tied scans.

random: random order (expected values). prior: for every query, the scans whose findings are most like those of the training
scans come first; it reads the labels of the gallery, which would not be available in practice, and ignores the query. Where
every finding is rare, these are the scans without findings: right for queries without a finding, wrong for the others.
histogram: L1 distance between intensity histograms; the floor, because it needs neither labels nor training. random-network:
features of the untrained backbone (one draw of its weights, so other draws may score differently). oracle: Jaccard similarity
of the drawn findings; the labels that judge all rows have a reader's errors."""
AGAINST = """Differences of NDCG@10 and mAP@5 (means of patient means) with 95 % intervals from 2,000 bootstrap draws of
patients, as queries and as gallery (by way of jackknife pseudo-values). A configuration with several seeds is represented by
their mean. The intervals leave out the variance between training runs and are not corrected: the ranking's verdict is
stricter."""
FINDINGS = """F1 of the votes of the nearest scans (a finding is predicted if at least half of them have it); head: F1 of the
network's own classification. NDCG@10 is given for the queries with each finding and for those with none. Hubness: skewness of how
often a scan is among the 10 nearest neighbours of others."""


def rank(params: Params, runs: Runs) -> Ranking:
    return ranking.rank(
        read_all_cases(runs),
        METRIC,
        lower_is_better=False,
        label="NDCG@10",
        bounds=(0, 1),
        **params.ranking.model_dump(),
        deterministic=[name for name in runs if name not in params.ct.sweep.configs],
        pseudo_values=PSEUDO_VALUE.format(METRIC),
        note=JACKKNIFE,
        questions=_questions(params.ct),
        floor="histogram",
        ceiling=ORACLE,
    )


def _questions(params: Ct) -> list[Question]:
    """Does a network beat the trivial methods, and the graded objective the published triplets?"""
    questions = [is_better(name, other) for name in params.sweep.configs for other in ("prior", "histogram")]
    graded = [name for name in params.sweep.configs if params.configs[name].objective == "graded_contrast"]
    for name in graded:
        arch = params.configs[name].arch
        published = [n for n, c in params.configs.items() if (c.arch, c.selector) == (arch, "semi_hard")]
        questions += [is_better(name, other) for other in published]
    return questions


def report_sections(params: Ct, table: Ranking, runs: Runs) -> list[Section]:
    order = list(table.with_ceiling()["config"])
    trained = [name for name in order if name in params.sweep.configs]
    metrics = evaluation_metrics(runs, order)
    costs = training_metrics(runs, trained).join(metrics[["evaluation_seconds_per_scan"]])
    return [
        Section("Comparison with the baselines", AGAINST, _differences(runs, trained)),
        Section("By cut-off", "Means over queries.", _metrics_at_k(metrics)),
        Section("Findings", FINDINGS, _metrics_by_finding(metrics)),
        Section("Cost", "On this machine; training time includes validation.", select_columns(costs, COSTS)),
        Section("How to read this", READING),
    ]


def _differences(runs: Runs, configs: list[str]) -> pd.DataFrame:
    rows = []
    for name in configs:
        for other in BASELINES:
            row: dict[str, object] = {"first": name, "second": other}
            for metric, label in ((METRIC, "NDCG@10"), ("ap_at_5", "mAP@5")):
                first, second = (_patient_scores(runs[n], PSEUDO_VALUE.format(metric)) for n in (name, other))
                difference = (first - second).to_numpy()
                weights = bootstrap_weights(first.index)
                low, high = percentile_interval(bootstrap_means(difference, weights))
                row[label] = f"{difference.mean():+.3f} [{low:+.3f}, {high:+.3f}]"
            rows.append(row)
    return pd.DataFrame(rows)


def _patient_scores(runs: Sequence[Path], metric: str) -> pd.Series:
    """The mean over runs for each patient."""
    table = read_cases(runs)
    return table[table["metric"] == metric].groupby("group")["value"].mean()


def _metrics_at_k(metrics: pd.DataFrame) -> pd.DataFrame:
    return select_columns(metrics, {f"{name}_at_{k}": f"{label}@{k}" for name, label in METRICS_AT_K.items() for k in KS})


def _metrics_by_finding(metrics: pd.DataFrame) -> pd.DataFrame:
    columns = {"micro_f1": "micro-F1", "macro_f1": "macro-F1", "weighted_f1": "weighted F1", "head/micro_f1": "head micro-F1"}
    columns |= {name: f"F1 {name.partition('/')[2]}" for name in metrics if name.startswith("f1/")}
    columns |= {name: f"NDCG@10 {name.partition('/')[2]}" for name in metrics if name.startswith("ndcg_at_10/")}
    return select_columns(metrics, columns | {"hubness_skew_at_10": "hubness"})
