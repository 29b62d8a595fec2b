"""The ranking of all configurations, and its analysis: scores by pattern with intervals, the comparison with single modalities,
and what diffusion and test-time training change."""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet import ranking
from quintet.comparison import Runs, evaluation_metrics, read_all_cases, select_columns, training_metrics
from quintet.fusion.evaluation.patterns import MAR, MCAR, NOT_SUBSETS, RECORDED
from quintet.fusion.evaluation.scores import CLASSIFICATION, SURVIVAL, shapley
from quintet.fusion.metrics import auc_or_concordance_of, comparable_pairs, scores_and_target
from quintet.pages import Section
from quintet.params import Fusion, Params
from quintet.params.fusion import ADAPTS, BASELINES, TTT
from quintet.ranking import JACKKNIFE, Question, Ranking, is_better
from quintet.resampling import bootstrap_concordance, bootstrap_weights, percentile_interval

COSTS = {
    "train_seconds": "training, s",
    "seconds_per_prediction": "prediction, s",
    "ttt/seconds_per_prediction": "with test-time training, s",
    "parameters": "parameters",
    "peak_memory_mb": "peak memory, MiB",
    "best_epoch": "best epoch (from 0)",
}
Floats = NDArray[np.float64]


def ranked_configs(params: Fusion) -> dict[str, str]:
    """Each row of the ranking -> the trained configuration (or baseline) that it comes from."""
    rows = {}
    for name in params.sweep.configs:
        rows[name] = name
        if params.configs[name].method in ADAPTS:
            rows[name + TTT] = name
    return rows | {name: name for name in BASELINES}


def rank(params: Params, runs: Runs) -> Ranking:
    classification = params.fusion.data.task == "classification"
    return ranking.rank(
        read_all_cases(runs),
        f"{CLASSIFICATION if classification else SURVIVAL}_over_subsets",
        label=f"{'Brier score' if classification else 'concordance index'}, mean over modality subsets",
        lower_is_better=classification,
        bounds=(0, 1),
        alpha=params.ranking.alpha,
        bootstrap=params.ranking.bootstrap,
        deterministic=BASELINES,
        same_run_as=ranked_configs(params.fusion),
        questions=questions(params.fusion),
        note="" if classification else JACKKNIFE,
    )


def questions(params: Fusion) -> list[Question]:
    """Is diffusion better than each deterministic method, without and with adaptation (of those that adapt)?"""
    methods = {name: params.configs[name].method for name in params.sweep.configs}
    pairs = [(d, other) for d, own in methods.items() if own == "diffusion" for other, m in methods.items() if m != "diffusion"]
    adapted = [(d + TTT, other + TTT * (methods[other] in ADAPTS)) for d, other in pairs]
    return [is_better(first, second) for first, second in pairs + adapted]


def report_sections(params: Fusion, table: Ranking, runs: Runs) -> list[Section]:
    order = [str(name) for name in table.table["config"]]
    source, configs = ranked_configs(params), params.sweep.configs
    scores = BootstrapScores({name: _predictions(runs[source[name]], name) for name in order})
    costs = training_metrics(runs, configs).join(evaluation_metrics(runs, configs).filter(like="seconds"))
    score = "AUC" if params.data.task == "classification" else "concordance index"
    return [
        Section(f"{score} by modalities", BY_PATTERN, _by_pattern(scores, order)),
        Section("Compared with the best single modality", SINGLE, _best_single(scores, order)),
        Section("Diffusion and test-time training", DIFFERENCES.format(score=score), _differences(scores, order, source, params)),
        Section("Effect of test-time training on patients", ADAPTATION, _adaptation(runs, params)),
        Section("What each modality adds", SHAPLEY.format(score=score), _shapley(scores, order)),
        Section("Imputed features", IMPUTATION, _imputation(runs, params)),
        Section("Cost", "On this machine; a prediction is one patient with one set of modalities.", select_columns(costs, COSTS)),
    ]


def _predictions(runs: list[Path], config: str) -> list[pd.DataFrame]:
    """The predictions of one ranked configuration, one table per run."""
    tables = [pd.read_csv(run / "evaluation" / "predictions.csv", dtype={"patient": str}) for run in runs]
    return [table[table["config"] == config] for table in tables]


class BootstrapScores:
    """AUC or concordance index of each configuration on a pattern, and its value in each bootstrap draw of patients. The draws
    are the same for all configurations; several seeds are averaged within a draw."""

    def __init__(self, predictions: Mapping[str, list[pd.DataFrame]]) -> None:
        self.predictions = predictions
        first = next(iter(predictions.values()))[0]
        self.columns = [c for c in first if c.startswith("probability/")] or ["risk"]
        self.patterns = list(dict.fromkeys(first["pattern"]))
        self.patients = first.groupby("pattern")["patient"].nunique()
        self.subsets = [name for name in self.patterns if name not in NOT_SUBSETS]
        self.all_modalities = max(self.subsets, key=lambda name: name.count("+"))
        self.modalities = sorted(self.all_modalities.split("+"), key=self.subsets.index)
        self.complete = pd.Index(first.loc[first["pattern"] == self.all_modalities, "patient"])  # patients with all modalities
        recorded = first[first["pattern"] == RECORDED].set_index("patient")
        strata = recorded["target"] if len(self.columns) > 1 else recorded["event"]
        self.weights = pd.DataFrame(bootstrap_weights(recorded.index, strata).T, index=recorded.index)

    def score(self, config: str, pattern: str, *, patients: pd.Index | None = None) -> tuple[float, Floats]:
        """The value and that of each draw; NaN if no pair of patients is comparable."""
        values, draws = [], []
        for table in self.predictions[config]:
            rows = table[table["pattern"] == pattern]
            rows = rows if patients is None else rows[rows["patient"].isin(patients)]
            if not len(rows) or np.isnan(value := auc_or_concordance_of(rows, self.columns)):
                return np.nan, np.full(self.weights.shape[1], np.nan)
            weights = self.weights.loc[rows["patient"]].to_numpy().T
            pairs = comparable_pairs(*scores_and_target(rows, self.columns))
            values.append(value)
            draws.append(np.mean([bootstrap_concordance(s, comparable, weights) for s, comparable in pairs], 0))
        return float(np.mean(values)), np.mean(draws, 0)

    def subset_scores(self, config: str) -> tuple[list[float], Floats]:
        found = [self.score(config, name) for name in self.subsets]
        return [value for value, _ in found], np.stack([draws for _, draws in found])

    def mean_of_subsets(self, config: str) -> tuple[float, Floats]:
        values, draws = self.subset_scores(config)
        return float(np.nanmean(values)), np.nanmean(draws, 0)


def _with_interval(value: float, draws: Floats, *, sign: bool = False) -> str:
    if np.isnan(value):
        return ""
    low, high = percentile_interval(draws)
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]" if sign else f"{value:.3f} [{low:.3f}, {high:.3f}]"


BY_PATTERN = f"""95 % bootstrap intervals: 2,000 draws of patients within each class (or of events and of censored patients);
configurations with several seeds: their mean. A subset of the modalities is scored on the patients who have all of it.
{RECORDED}: all modalities of each patient; {MCAR}, {MAR}: the same with further modalities masked, at random or more often the
higher a patient's clinical features are. mean of subsets, worst subset: over all subsets."""


def _by_pattern(scores: BootstrapScores, order: list[str]) -> pd.DataFrame:
    rows: list[dict[str, object]] = []
    for pattern in scores.patterns:
        cells = {config: _with_interval(*scores.score(config, pattern)) for config in order}
        rows.append({"modalities": pattern, "patients": int(scores.patients[pattern]), **cells})
    means = {config: _with_interval(*scores.mean_of_subsets(config)) for config in order}
    worst = {config: f"{np.nanmin(scores.subset_scores(config)[0]):.3f}" for config in order}
    rows.append({"modalities": "mean of subsets", "patients": "", **means})
    rows.append({"modalities": "worst subset", "patients": "", **worst})
    return pd.DataFrame(rows)


SINGLE = """On the patients who have every modality. best single: the highest score that any configuration reaches from a single
modality on these patients (an optimistic choice). difference: the score from all modalities minus that, in the same draws."""


def _best_single(scores: BootstrapScores, order: list[str]) -> pd.DataFrame:
    candidates = [(config, modality) for config in order for modality in scores.modalities]
    found = {pair: scores.score(*pair, patients=scores.complete) for pair in candidates}
    config, modality = max(candidates, key=lambda pair: np.nan_to_num(found[pair][0]))
    best, best_draws = found[config, modality]
    rows = []
    for name in order:
        value, draws = scores.score(name, scores.all_modalities, patients=scores.complete)
        rows.append(
            {
                "config": name,
                "all modalities": _with_interval(value, draws),
                "best single": f"{modality} ({config}) {best:.3f}",
                "difference": _with_interval(value - best, draws - best_draws, sign=True),
            }
        )
    return pd.DataFrame(rows)


DIFFERENCES = """Difference of the {score}, first minus second, with its 95 % interval: from all recorded modalities, and the mean
over the subsets. If an interval contains zero, neither benefit nor harm was shown."""


def _differences(scores: BootstrapScores, order: list[str], source: Mapping[str, str], params: Fusion) -> pd.DataFrame:
    trained = [name for name in order if name in params.sweep.configs]
    pairs = [(name, source[name]) for name in order if name.endswith(TTT)]
    diffusion = [name for name in trained if params.configs[name].method == "diffusion"]
    pairs += [(name, other) for name in diffusion for other in trained if params.configs[other].method != "diffusion"]
    rows = []
    for first, second in pairs:
        row = {"first": first, "second": second}
        for column, score in ((RECORDED, lambda c: scores.score(c, RECORDED)), ("mean of subsets", scores.mean_of_subsets)):
            (a, a_draws), (b, b_draws) = score(first), score(second)
            row[column] = _with_interval(a - b, a_draws - b_draws, sign=True)
        rows.append(row)
    return pd.DataFrame(rows, columns=["first", "second", RECORDED, "mean of subsets"])


ADAPTATION = """Of the test patients, from all recorded modalities: the share for which the network was adapted (the
self-supervised loss fell; otherwise the trained weights are kept), the shares whose log loss (survival: concordance) became worse
and better, and its mean change."""


def _adaptation(runs: Runs, params: Fusion) -> pd.DataFrame:
    configs = [name for name in params.sweep.configs if params.configs[name].method in ADAPTS]
    if not configs:
        return pd.DataFrame()
    metric = "log_loss" if params.data.task == "classification" else SURVIVAL
    columns = {
        "ttt/adapted_rate": "adapted",
        "ttt/harm_rate": "worse",
        "ttt/help_rate": "better",
        f"ttt/change_of_{metric}": f"mean change of the {metric.replace('_', ' ')}",
    }
    return select_columns(evaluation_metrics(runs, configs), columns)


SHAPLEY = """Shapley values of the {score} on the patients who have every modality: what a modality adds, averaged over all orders
of adding them. The value of no modality is 0.5."""


def _shapley(scores: BootstrapScores, order: list[str]) -> pd.DataFrame:
    rows = []
    for config in order:
        value = {frozenset[str](): 0.5}
        for size in range(1, len(scores.modalities) + 1):
            for chosen in combinations(scores.modalities, size):
                value[frozenset(chosen)] = scores.score(config, "+".join(chosen), patients=scores.complete)[0]
        rows.append({"config": config, **shapley(value, scores.modalities)})
    return pd.DataFrame(rows)


IMPUTATION = """Features of a modality that a patient has, predicted from the patient's other modalities: decoded from the fused
vector (imputed), by ridge regression on the other modalities' features (the linear conditional mean), and the training mean.
Cosine similarity: higher is better; mean squared error (mse): lower is better; features are standardised. Imputation is only
useful where it is better than the regression."""


def _imputation(runs: Runs, params: Fusion) -> pd.DataFrame:
    rows = []
    for name in params.sweep.configs:
        files = [run / "evaluation" / "imputation.csv" for run in runs[name]]
        if all(file.is_file() for file in files):
            mean = pd.concat([pd.read_csv(file) for file in files]).groupby("modality", sort=False).mean().reset_index()
            rows.append(mean.assign(config=name))
    if not rows:
        return pd.DataFrame()
    table = pd.concat(rows, ignore_index=True)
    return table[["config", *[c for c in table if c != "config"]]]
