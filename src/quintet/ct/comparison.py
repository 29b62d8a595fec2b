"""All configurations and baselines side by side: ranking, intervals of the differences, metrics by k, findings, cost."""

from pathlib import Path

import pandas as pd

from quintet import ranking, results
from quintet.comparison import Runs, evaluation_metrics, prune_runs, publish, select_columns, sweep_runs, training_metrics
from quintet.ct.metrics import KS
from quintet.pages import Section
from quintet.params import Ct, Params
from quintet.params.ct import BASELINES
from quintet.resampling import bootstrap_means, bootstrap_weights, percentile_interval

METRIC, UNIT = "ap_at_5", "mAP@5, 0 to 1"
SWEEP, FITTED = Path("runs/ct/sweep"), Path("runs/ct/baselines")
COSTS = {
    "train_seconds": "training, s",
    "evaluation_seconds_per_scan": "embedding, s a scan",
    "parameters": "parameters",
    "peak_memory_mb": "peak memory, MiB",
    "best_epoch": "best epoch (from 0)",
}

READING = """A query is a test scan; its gallery all other test scans that are not of its patient. Relevant: a scan that shares a
finding with the query, or like it has none (Jaccard similarity above 0); gain: that Jaccard similarity. AP@k is normalised by
min(k, relevant scans). Equal similarities share their places: every metric is its expectation over their orders.

random: any order (expected values). prior: to everybody the scans first that are relevant to most training scans; it reads the
labels of the gallery and never looks at the query, which is more than a lab without labels could do. histogram: 1-norm of
intensity
histograms."""


def runs_of(p: Ct, sweep: Path, baselines: Path) -> dict[str, list[Path]]:
    """The run folders that params name."""
    return sweep_runs(p.sweep, sweep) | {name: [baselines / name / "seed0"] for name in (*BASELINES, *p.external)}


def ranked(params: Params, sweep: Path = SWEEP, baselines: Path = FITTED) -> ranking.Ranking:
    p = params.ct
    table = results.read(run / "evaluation" / "cases.csv" for group in runs_of(p, sweep, baselines).values() for run in group)
    return ranking.rank(
        table,
        METRIC,
        lower_is_better=False,
        alpha=params.ranking.alpha,
        bootstrap=params.ranking.bootstrap,
        deterministic=[*BASELINES, *p.external],
    )


def compare(params: Params, sweep: Path, baselines: Path, out: Path, report: Path) -> str:
    """Rank what params name, write `report` and `out` = {record.json}; returns the verdict."""
    p = params.ct
    runs = runs_of(p, sweep, baselines)
    prune_runs(sweep, [run for name in p.sweep.configs for run in runs[name]])
    table = ranked(params, sweep, baselines)
    order = list(table.table["config"])
    found, costs = evaluation_metrics(runs, order), training_metrics(runs, [name for name in order if name in p.sweep.configs])
    costs = costs.join(found[["evaluation_seconds_per_scan"]])
    sections = [
        Section("Against the baselines", AGAINST, _differences(runs, [n for n in order if n in p.sweep.configs])),
        Section("By cut-off", "Means over queries.", _by_k(found)),
        Section("Findings", FINDINGS, _findings(found)),
        Section("Cost", "On this machine; training includes validation.", select_columns(costs, COSTS)),
        Section("How to read this", READING),
    ]
    publish("ct", table, runs, out, report, title="Chest CT retrieval", unit=UNIT, extra=lambda _: sections)
    return table.verdict


AGAINST = """Difference of mAP@5 and of NDCG@10 with 95 % interval: patients are drawn again, all their queries together (2,000
times); configurations with several seeds: their mean."""


def _differences(runs: Runs, configs: list[str]) -> pd.DataFrame:
    rows = []
    for name in configs:
        for other in BASELINES:
            row: dict[str, object] = {"first": name, "second": other}
            for metric, label in ((METRIC, "mAP@5"), ("ndcg_at_10", "NDCG@10")):
                first, second = (_by_query(runs[n], metric) for n in (name, other))
                both = first.join(second, lsuffix="_first", rsuffix="_second", how="inner")
                gap = (both["value_first"] - both["value_second"]).to_numpy()
                low, high = percentile_interval(bootstrap_means(gap, bootstrap_weights(both.index.get_level_values("group"))))
                row[label] = f"{gap.mean():+.3f} [{low:+.3f}, {high:+.3f}]"
            rows.append(row)
    return pd.DataFrame(rows)


def _by_query(runs: list[Path], metric: str) -> pd.DataFrame:
    table = results.read(run / "evaluation" / "cases.csv" for run in runs)
    return table[table["metric"] == metric].groupby(["group", "case"])[["value"]].mean()


def _by_k(found: pd.DataFrame) -> pd.DataFrame:
    kinds = {"map": "mAP", "ndcg": "NDCG", "precision": "P", "recall": "R", "jaccard": "Jaccard"}
    return select_columns(found, {f"{kind}_at_{k}": f"{label}@{k}" for kind, label in kinds.items() for k in KS})


FINDINGS = """F1: from the votes of the nearest scans (half or more of them have the finding); head: from the network's own
classification. mAP@5 of the queries that have a finding, and of those that have none. Hubness: skewness of how often a scan is
among
the 10 nearest of others."""


def _findings(found: pd.DataFrame) -> pd.DataFrame:
    columns = {"micro_f1": "micro-F1", "macro_f1": "macro-F1", "weighted_f1": "weighted F1", "head/micro_f1": "head micro-F1"}
    columns |= {name: f"F1 {name.partition('/')[2]}" for name in found if name.startswith("f1/")}
    columns |= {name: f"mAP@5 {name.partition('/')[2]}" for name in found if name.startswith("map_at_5/")}
    return select_columns(found, columns | {"hubness_skew_at_10": "hubness"})
