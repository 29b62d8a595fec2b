"""The analysis in the report: scores by pattern with intervals, the comparison with single modalities, other hospitals, and what
completion, diffusion and test-time training change."""

from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet.comparison import Runs, evaluation_metrics, select_columns, training_metrics
from quintet.fusion.comparison import compared_pairs, ranked_configs
from quintet.fusion.data.prepared import EXTERNAL
from quintet.fusion.evaluation.patterns import MAR, MCAR, NOT_SUBSETS, RECORDED
from quintet.fusion.evaluation.scores import CLASSIFICATION, SURVIVAL, calibration_error, shapley
from quintet.fusion.metrics import auc_or_concordance_of, comparable_pairs, scores_and_target
from quintet.pages import Section
from quintet.params import Fusion
from quintet.params.fusion import ADAPTATION_STEPS, ADAPTS, BASELINES, TTT
from quintet.ranking import Ranking
from quintet.resampling import bootstrap_concordance, bootstrap_means, bootstrap_weights, percentile_interval

COSTS = {
    "train_seconds": "training, s",
    "seconds_per_prediction": "prediction, s",
    "ttt/seconds_per_prediction": "with test-time training, s",
    "parameters": "parameters",
    "peak_memory_mb": "peak memory, MiB",
    "best_epoch": "best epoch (from 0)",
}
Floats = NDArray[np.float64]


def report_sections(params: Fusion, table: Ranking, runs: Runs) -> list[Section]:
    order = [str(name) for name in table.table["config"]]
    source, configs = ranked_configs(params) | {name: name for name in BASELINES}, list(params.sweep_runs())
    scores = BootstrapScores({name: _predictions(runs[source[name]], name) for name in order})
    costs = training_metrics(runs, configs).join(evaluation_metrics(runs, configs).filter(like="seconds"))
    score = "AUC" if params.data.task == "classification" else "concordance index"
    return [
        Section(f"{score} by modalities", BY_PATTERN, _by_pattern(scores, order)),
        Section("Compared with the best single modality", SINGLE, _best_single(scores, order)),
        Section(
            "Pairs over patients: completion, diffusion, test-time training",
            DIFFERENCES.format(score=score),
            _differences(scores, order, source, params),
        ),
        Section("Effect of test-time training on patients", ADAPTATION, _adaptation(runs, params)),
        Section("Other hospitals", ELSEWHERE, _elsewhere(runs, source, order)),
        Section("What each modality adds", SHAPLEY.format(score=score), _shapley(scores, order)),
        Section("Completed tokens", COMPLETION, _completion(runs, params)),
        Section("By number of missing modalities", MISSING, _by_missing(runs, source, order)),
        Section("Imputed features", IMPUTATION, _imputation(runs, params)),
        Section("Cost", COST, select_columns(costs, COSTS)),
    ]


def _predictions(runs: list[Path], config: str, file: str = "predictions.csv") -> list[pd.DataFrame]:
    """The predictions of one ranked configuration, one table per run."""
    texts = {"patient": str, "subject": str}  # somebody may be called NA
    options: dict[str, Any] = {"dtype": texts, "keep_default_na": False, "na_values": [""]}
    tables = [pd.read_csv(run / "evaluation" / file, **options) for run in runs]
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
        self.all_modalities = max(self.subsets, key=lambda name: name.count("+"), default="")
        self.modalities = sorted(filter(None, self.all_modalities.split("+")), key=self.subsets.index)
        self.complete = pd.Index(first.loc[first["pattern"] == self.all_modalities, "patient"])  # patients with all modalities
        recorded = first[first["pattern"] == RECORDED].set_index("patient")
        strata = recorded["target"] if len(self.columns) > 1 else recorded["event"]
        self.found: dict[tuple[str, str, bool], tuple[float, Floats]] = {}
        self.weights = pd.DataFrame(bootstrap_weights(recorded["subject"], strata).T, index=recorded.index)

    def score(self, config: str, pattern: str, *, complete: bool = False) -> tuple[float, Floats]:
        """The value and that of each draw, of all patients or of those with all modalities; NaN if no pair is comparable."""
        key = config, pattern, complete
        if key not in self.found:
            self.found[key] = self._score(config, pattern, self.complete if complete else None)
        return self.found[key]

    def _score(self, config: str, pattern: str, patients: pd.Index | None) -> tuple[float, Floats]:
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

    def mean_of_subsets(self, config: str, *, incomplete: bool = False) -> tuple[float, Floats]:
        """`incomplete`: without the set of all modalities."""
        values, draws = self.subset_scores(config)
        wanted = np.array([not (incomplete and name == self.all_modalities) for name in self.subsets])
        kept = wanted & ~np.isnan(values)
        return float(np.mean(np.array(values)[kept])), np.mean(draws[kept], 0)

    def brier_of_incomplete(self, config: str) -> tuple[float, Floats]:
        """The Brier score, mean over the sets that lack a modality, and its value in each draw."""
        rows = pd.concat([t[t["pattern"].isin(self.subsets)] for t in self.predictions[config]])
        patients = rows[rows["pattern"] != self.all_modalities].groupby(["pattern", "patient"])[CLASSIFICATION].mean()
        values, draws = [], []
        for _, own in patients.groupby("pattern"):
            weights = self.weights.loc[own.index.get_level_values("patient")].to_numpy().T
            values.append(own.mean())
            draws.append(bootstrap_means(own.to_numpy(), weights))
        return float(np.mean(values)), np.mean(draws, 0)


def _with_interval(value: float, draws: Floats, *, sign: bool = False) -> str:
    if np.isnan(value):
        return ""
    low, high = percentile_interval(draws)
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]" if sign else f"{value:.3f} [{low:.3f}, {high:.3f}]"


COST = """On this machine. training: of a method on frozen encoders without theirs, which are those of late. prediction: of
one patient with one set of modalities, from encoded images."""
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
    found = {pair: scores.score(*pair, complete=True) for pair in candidates}
    config, modality = max(candidates, key=lambda pair: np.nan_to_num(found[pair][0]))
    best, best_draws = found[config, modality]
    rows = []
    for name in order:
        value, draws = scores.score(name, scores.all_modalities, complete=True)
        rows.append(
            {
                "config": name,
                "all modalities": _with_interval(value, draws),
                "best single": f"{modality} ({config}) {best:.3f}",
                "difference": _with_interval(value - best, draws - best_draws, sign=True),
            }
        )
    return pd.DataFrame(rows)


DIFFERENCES = """Difference of the {score}, first minus second, with its 95 % interval over patients (seeds averaged): from all
recorded modalities, the mean over the subsets, and over those that lack a modality (incomplete). Brier gain: how much lower the
first one's Brier score is, incomplete subsets. If an interval contains zero, neither benefit nor harm was shown; the ranking's
verdict is stricter, because it also counts the variance between training runs and is corrected for the number of comparisons."""


def _differences(scores: BootstrapScores, order: list[str], source: Mapping[str, str], params: Fusion) -> pd.DataFrame:
    trained = [name for name in order if name in params.sweep_runs()]
    pairs = [(name, source[name]) for name in order if name.endswith(TTT)]
    pairs += [pair for pair in compared_pairs(params) if set(pair) <= set(trained)]
    columns: dict[str, Callable[[str], tuple[float, Floats]]] = {
        RECORDED: lambda c: scores.score(c, RECORDED),
        "mean of subsets": scores.mean_of_subsets,
        "incomplete": lambda c: scores.mean_of_subsets(c, incomplete=True),
    }
    rows = []
    for first, second in pairs:
        row = {"first": first, "second": second}
        for column, score in columns.items():
            (a, a_draws), (b, b_draws) = score(first), score(second)
            row[column] = _with_interval(a - b, a_draws - b_draws, sign=True)
        if len(scores.columns) > 1:
            (a, a_draws), (b, b_draws) = (scores.brier_of_incomplete(name) for name in (first, second))
            row["Brier gain, incomplete"] = _with_interval(b - a, b_draws - a_draws, sign=True)
        rows.append(row)
    return pd.DataFrame(rows)


ADAPTATION = """From all recorded modalities, on the test patients and on those of other hospitals (external): the share of
patients for whom the network was adapted (otherwise the trained weights are kept), the shares whose log loss (survival:
concordance) became worse and better, and its mean change with its 95 % interval over patients; means over the seeds. steps:
chosen on the validation patients with each seed."""


def _adaptation(runs: Runs, params: Fusion) -> pd.DataFrame:
    metric = "log_loss" if params.data.task == "classification" else SURVIVAL
    rows: list[dict[str, object]] = []
    adapting = [name for name in params.sweep.configs if params.configs[name].method in ADAPTS]
    steps = evaluation_metrics(runs, adapting) if adapting else pd.DataFrame()
    for name in adapting:
        for part, file in (("test", "predictions.csv"), (EXTERNAL, f"{EXTERNAL}.csv")):
            if not (runs[name][0] / "evaluation" / file).is_file():
                continue
            plain, adapted = (_recorded(_predictions(runs[name], config, file)) for config in (name, name + TTT))
            change = (adapted[metric] - plain[metric]).dropna()  # survival: of patients with a comparable pair
            worse = change if metric == "log_loss" else -change
            means = change.groupby("patient").mean()
            people = plain.groupby("patient")["subject"].first()[means.index]
            draws = bootstrap_means(means.to_numpy(), bootstrap_weights(people))
            rows.append(
                {
                    "config": name,
                    "patients": part,
                    "steps": steps.at[name, ADAPTATION_STEPS],
                    "adapted": adapted["adapted"].mean(),
                    "worse": (worse > 1e-9).mean(),
                    "better": (worse < -1e-9).mean(),
                    f"mean change of the {metric.replace('_', ' ')}": _with_interval(float(means.mean()), draws, sign=True),
                }
            )
    return pd.DataFrame(rows)


def _recorded(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """The predictions from all recorded modalities, of all seeds."""
    return pd.concat([t[t["pattern"] == RECORDED].set_index("patient") for t in tables], keys=range(len(tables)), names=["seed"])


ELSEWHERE = """The patients of other hospitals, whose scanners differ and who were used for nothing else, beside the test
patients; from all recorded modalities, with 95 % bootstrap intervals over patients, seeds averaged."""


def _elsewhere(runs: Runs, source: Mapping[str, str], order: list[str]) -> pd.DataFrame:
    trained = [name for name in order if (runs[source[name]][0] / "evaluation" / f"{EXTERNAL}.csv").is_file()]
    if not trained:
        return pd.DataFrame()
    here, there = (
        BootstrapScores({name: _predictions(runs[source[name]], name, file) for name in trained})
        for file in ("predictions.csv", f"{EXTERNAL}.csv")
    )
    rows = []
    for name in trained:
        row: dict[str, object] = {"config": name}
        for part, scores in (("test", here), (EXTERNAL, there)):
            row[f"{'AUC' if len(scores.columns) > 1 else 'concordance'}, {part}"] = _with_interval(*scores.score(name, RECORDED))
            if len(scores.columns) > 1:
                row[f"log loss, {part}"] = _recorded(scores.predictions[name])["log_loss"].mean()
        rows.append(row)
    return pd.DataFrame(rows)


SHAPLEY = """Shapley values of the {score} on the patients who have every modality: what a modality adds, averaged over all orders
of adding them. The value of no modality is 0.5."""


def _shapley(scores: BootstrapScores, order: list[str]) -> pd.DataFrame:
    rows = []
    for config in order:
        value = {frozenset[str](): 0.5}
        for size in range(1, len(scores.modalities) + 1):
            for chosen in combinations(scores.modalities, size):
                value[frozenset(chosen)] = scores.score(config, "+".join(chosen), complete=True)[0]
        rows.append({"config": config, **shapley(value, scores.modalities)})
    return pd.DataFrame(rows)


COMPLETION = """Missing tokens, completed from the others, on the test patients who have every modality: mean over all sets of
modalities and over seeds. mse: of the mean of the draws (training mean: of the mean over training patients), energy: the energy
score (Gneiting and Raftery 2007), both lower is better; covered: the share of tokens in their 80 % interval; SD: of the draws."""


def _completion(runs: Runs, params: Fusion) -> pd.DataFrame:
    columns = {"mse": "mse", "mse_of_training_mean": "training mean", "energy": "energy", "coverage_80": "covered", "sd": "SD"}
    rows = []
    for name in params.sweep.configs:
        files = [run / "evaluation" / "completion.csv" for run in runs[name]]
        if all(file.is_file() for file in files):
            means = pd.concat([pd.read_csv(file) for file in files]).groupby("missing").mean().reset_index()
            rows.append(means.rename(columns=columns).assign(config=name))
    if not rows:
        return pd.DataFrame()
    table = pd.concat(rows, ignore_index=True)
    return table[["config", "missing", *[c for c in columns.values() if c in table]]]


MISSING = """Mean over the sets of modalities with so many missing, and over seeds; of the patients who have all of a set. ECE:
expected calibration error in 10 bins; spread: SD of the predicted probabilities between draws, where a method draws."""


def _by_missing(runs: Runs, source: Mapping[str, str], order: list[str]) -> pd.DataFrame:
    rows = []
    for config in order:
        for table in _predictions(runs[source[config]], config):
            columns = [c for c in table if c.startswith("probability/")]
            subsets = table[~table["pattern"].isin(NOT_SUBSETS)]
            most = subsets["pattern"].str.count(r"\+").max()
            for pattern, own in subsets.groupby("pattern", sort=False) if columns else ():
                values = {"Brier score": own[CLASSIFICATION].mean(), "ECE": calibration_error(own, columns)}
                missing = most - str(pattern).count("+")
                rows.append({"config": config, "missing": missing, **values, "spread": own["spread"].mean()})
    return pd.DataFrame(rows).groupby(["config", "missing"], sort=False).mean().reset_index() if rows else pd.DataFrame()


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
