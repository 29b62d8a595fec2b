"""All configurations side by side: ranking, scores by pattern with intervals, against single modalities, diffusion, test-time
training."""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet import ranking, results
from quintet.comparison import Runs, evaluation_metrics, prune_runs, publish, select_columns, sweep_runs, training_metrics
from quintet.fusion.evaluation import CLASSIFICATION, MAR, MCAR, NOT_SUBSETS, RECORDED, SURVIVAL, headline_of, pairs_of, shapley
from quintet.pages import Section
from quintet.params import Fusion, Params
from quintet.params.fusion import ADAPTS, BASELINES, TTT
from quintet.resampling import bootstrap_concordance, bootstrap_weights, percentile_interval

SWEEP, FITTED = Path("runs/fusion/sweep"), Path("runs/fusion/baselines")
COSTS = {
    "train_seconds": "training, s",
    "seconds_per_prediction": "prediction, s",
    "ttt/seconds_per_prediction": "with test-time training, s",
    "parameters": "parameters",
    "peak_memory_mb": "peak memory, MiB",
    "best_epoch": "best epoch (from 0)",
}
Floats = NDArray[np.float64]


def runs_of(p: Fusion, sweep: Path, baselines: Path) -> dict[str, list[Path]]:
    """The run folders that params name."""
    return sweep_runs(p.sweep, sweep) | {name: [baselines / name / "seed0"] for name in BASELINES}


def variants(p: Fusion) -> dict[str, str]:
    """Every row of the ranking -> the trained configuration it comes from."""
    rows = {}
    for name in p.sweep.configs:
        rows[name] = name
        if p.configs[name].method in ADAPTS:
            rows[name + TTT] = name
    return rows | {name: name for name in BASELINES}


def metric_of(p: Fusion) -> tuple[str, str, bool]:
    """What is ranked, its unit, whether lower is better."""
    if p.task == "classification":
        return f"{CLASSIFICATION}_over_subsets", "Brier score, 0 to 1, a patient's mean over the subsets of what it has", True
    return (
        f"{SURVIVAL}_over_subsets",
        "share of a patient's comparable pairs in order, mean over the subsets of what it has",
        False,
    )


def ranked(params: Params, sweep: Path = SWEEP, baselines: Path = FITTED) -> ranking.Ranking:
    p = params.fusion
    table = results.read(run / "evaluation" / "cases.csv" for group in runs_of(p, sweep, baselines).values() for run in group)
    metric, _, lower = metric_of(p)
    return ranking.rank(
        table,
        metric,
        lower_is_better=lower,
        alpha=params.ranking.alpha,
        bootstrap=params.ranking.bootstrap,
        deterministic=BASELINES,
    )


def compare(params: Params, sweep: Path, baselines: Path, out: Path, report: Path) -> str:
    """Rank what params name, write `report` and `out` = {record.json}; returns the verdict."""
    p = params.fusion
    runs = runs_of(p, sweep, baselines)
    prune_runs(sweep, [run for name in p.sweep.configs for run in runs[name]])
    table = ranked(params, sweep, baselines)
    order = [str(name) for name in table.table["config"]]
    source = variants(p)
    drawn = Drawn({name: _predictions(runs[source[name]], name) for name in order})
    costs = training_metrics(runs, p.sweep.configs).join(evaluation_metrics(runs, p.sweep.configs).filter(like="seconds"))
    score = "AUC" if p.task == "classification" else "concordance index"
    sections = [
        Section(f"{score} by what is there", BY_PATTERN, _by_pattern(drawn, order)),
        Section("Against the best single modality", AGAINST, _against_single(drawn, order)),
        Section("Diffusion and test-time training", HELPS.format(score=score), _helps(drawn, order, source, p)),
        Section("What adaptation does to patients", HARM, _harm(runs, p)),
        Section("What each modality adds", SHAPLEY.format(score=score), _shapley(drawn, order)),
        Section("Imputed features", IMPUTED, _imputed(runs, p)),
        Section("Cost", "On this machine; a prediction is one patient from one set of modalities.", select_columns(costs, COSTS)),
    ]
    unit = metric_of(p)[1]
    publish("fusion", table, runs, out, report, title="Multimodal fusion", unit=unit, extra=lambda _: sections)
    return table.verdict


def _predictions(runs: list[Path], config: str) -> list[pd.DataFrame]:
    """Of each run the predictions of one variant."""
    tables = [pd.read_csv(run / "evaluation" / "predictions.csv", dtype={"patient": str}) for run in runs]
    return [table[table["config"] == config] for table in tables]


class Drawn:
    """AUC (or concordance) of each variant on a pattern, with its draws of patients: the same patients are drawn for all, and
    several seeds are averaged in each draw."""

    def __init__(self, predictions: Mapping[str, list[pd.DataFrame]]) -> None:
        self.predictions = predictions
        first = next(iter(predictions.values()))[0]
        self.columns = [c for c in first if c.startswith("probability/")] or ["risk"]
        self.patterns = list(dict.fromkeys(first["pattern"]))
        self.subsets = [name for name in self.patterns if name not in NOT_SUBSETS]
        everybody = first[first["pattern"] == RECORDED].set_index("patient")
        kinds = everybody["target"] if len(self.columns) > 1 else everybody["event"]
        self.weights = pd.DataFrame(bootstrap_weights(everybody.index, kinds).T, index=everybody.index)
        self.players = sorted(max(self.subsets, key=lambda name: name.count("+")).split("+"), key=self.subsets.index)

    def score(self, config: str, pattern: str, *, patients: pd.Index | None = None) -> tuple[float, Floats]:
        """The value, and that of each draw; NaN where nothing is comparable."""
        values, draws = [], []
        for table in self.predictions[config]:
            own = table[table["pattern"] == pattern]
            own = own if patients is None else own[own["patient"].isin(patients)]
            if not len(own) or np.isnan(value := headline_of(own, self.columns)):
                return np.nan, np.full(self.weights.shape[1], np.nan)
            weights = self.weights.loc[own["patient"]].to_numpy().T
            said = own[self.columns].to_numpy(float)
            scores = np.log(np.clip(said, 1e-12, 1)) if len(self.columns) > 1 else said
            each = [
                bootstrap_concordance(s, pairs, weights)
                for s, pairs in pairs_of(scores, own[["target", "event"]].to_numpy(float))
            ]
            values.append(value)
            draws.append(np.mean(each, 0))
        return float(np.mean(values)), np.mean(draws, 0)

    def over_subsets(self, config: str) -> tuple[list[float], Floats]:
        found = [self.score(config, name) for name in self.subsets]
        return [value for value, _ in found], np.stack([draws for _, draws in found])

    def complete(self) -> pd.Index:
        """The patients that have every modality."""
        first = next(iter(self.predictions.values()))[0]
        whole = max(self.subsets, key=lambda name: name.count("+"))
        return pd.Index(first.loc[first["pattern"] == whole, "patient"])


def _shown(value: float, draws: Floats, *, sign: bool = False) -> str:
    if np.isnan(value):
        return ""
    low, high = percentile_interval(draws)
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]" if sign else f"{value:.3f} [{low:.3f}, {high:.3f}]"


BY_PATTERN = f"""95 % intervals: patients are drawn again within their class (or censored and not), 2,000 times; configurations
with several seeds: their mean. A subset is scored on the patients that have all of it. {RECORDED}: each patient with whatever it
has; {MCAR}, {MAR}: that with more withheld, by chance or more often the higher the clinical row stands. mean, worst: over the
subsets."""


def _by_pattern(drawn: Drawn, order: list[str]) -> pd.DataFrame:
    counts = next(iter(drawn.predictions.values()))[0].groupby("pattern")["patient"].nunique()
    rows: list[dict[str, object]] = []
    for pattern in drawn.patterns:
        rows.append({"there": pattern, "patients": int(counts[pattern]), **{c: _shown(*drawn.score(c, pattern)) for c in order}})
    every = {c: drawn.over_subsets(c) for c in order}
    rows.append(
        {
            "there": "mean of subsets",
            "patients": "",
            **{c: _shown(float(np.nanmean(v)), np.nanmean(d, 0)) for c, (v, d) in every.items()},
        }
    )
    rows.append({"there": "worst subset", "patients": "", **{c: f"{np.nanmin(v):.3f}" for c, (v, _) in every.items()}})
    return pd.DataFrame(rows)


AGAINST = """Patients that have every modality. Single: the best score that any configuration reaches from one modality alone,
on these same patients (which favours it). Difference: with all modalities, minus that, the same patients drawn for both."""


def _against_single(drawn: Drawn, order: list[str]) -> pd.DataFrame:
    people = drawn.complete()
    whole = max(drawn.subsets, key=lambda name: name.count("+"))
    alone = [(c, name) for c in order for name in drawn.players]
    found = {pair: drawn.score(*pair, patients=people) for pair in alone}
    config, modality = max(alone, key=lambda pair: np.nan_to_num(found[pair][0]))
    best, best_draws = found[config, modality]
    rows = []
    for name in order:
        value, draws = drawn.score(name, whole, patients=people)
        rows.append(
            {
                "config": name,
                "all modalities": _shown(value, draws),
                "best single": f"{modality} ({config}) {best:.3f}",
                "difference": _shown(value - best, draws - best_draws, sign=True),
            }
        )
    return pd.DataFrame(rows)


HELPS = """Difference of the {score}, first minus second, with 95 % interval: with everything recorded, and the mean over the
subsets. An interval that holds zero shows neither help nor harm."""


def _helps(drawn: Drawn, order: list[str], source: Mapping[str, str], p: Fusion) -> pd.DataFrame:
    trained = [name for name in order if name in p.sweep.configs]
    pairs = [(name, source[name]) for name in order if name.endswith(TTT)]
    diffusion = [name for name in trained if p.configs[name].method == "diffusion"]
    pairs += [(name, other) for name in diffusion for other in trained if p.configs[other].method != "diffusion"]
    rows = []
    for first, second in pairs:
        (a, da), (b, db) = (drawn.score(name, RECORDED) for name in (first, second))
        (va, sa), (vb, sb) = (drawn.over_subsets(name) for name in (first, second))
        rows.append(
            {
                "first": first,
                "second": second,
                RECORDED: _shown(a - b, da - db, sign=True),
                "mean of subsets": _shown(
                    float(np.nanmean(va) - np.nanmean(vb)), np.nanmean(sa, 0) - np.nanmean(sb, 0), sign=True
                ),
            }
        )
    return pd.DataFrame(rows, columns=["first", "second", RECORDED, "mean of subsets"])


HARM = """Of the test patients, with everything recorded: share that adapted (the self-supervised loss fell; the others keep the
trained weights), share whose log loss (survival: concordance) became worse, became better, and its mean change."""


def _harm(runs: Runs, p: Fusion) -> pd.DataFrame:
    own = [name for name in p.sweep.configs if p.configs[name].method in ADAPTS]
    if not own:
        return pd.DataFrame()
    table = evaluation_metrics(runs, own)
    loss = "log_loss" if p.task == "classification" else SURVIVAL
    return select_columns(
        table,
        {
            "ttt/adapted_rate": "adapted",
            "ttt/harm_rate": "harm rate",
            "ttt/help_rate": "help rate",
            f"ttt/change_of_{loss}": f"mean change of {loss.replace('_', ' ')}",
        },
    )


SHAPLEY = """Shapley values of the {score} on the patients that have every modality: what a modality adds, averaged over all
orders of adding them; nothing at all is worth 0.5."""


def _shapley(drawn: Drawn, order: list[str]) -> pd.DataFrame:
    people, rows = drawn.complete(), []
    for config in order:
        value = {frozenset[str](): 0.5}
        for size in range(1, len(drawn.players) + 1):
            for chosen in combinations(drawn.players, size):
                value[frozenset(chosen)] = drawn.score(config, "+".join(chosen), patients=people)[0]
        rows.append({"config": config, **shapley(value, drawn.players)})
    return pd.DataFrame(rows)


IMPUTED = """The features of a modality that a patient has, told from its other modalities: drawn and decoded (imputed), by a
ridge regression on the others' features (the conditional mean, linear), and as the mean of training. Cosine: higher is better;
mean squared error: lower is; features are standardised. Only what beats the regression is worth generating."""


def _imputed(runs: Runs, p: Fusion) -> pd.DataFrame:
    rows = []
    for name in p.sweep.configs:
        files = [run / "evaluation" / "imputation.csv" for run in runs[name]]
        if all(file.is_file() for file in files):
            mean = pd.concat([pd.read_csv(file) for file in files]).groupby("modality", sort=False).mean().reset_index()
            rows.append(mean.assign(config=name))
    if not rows:
        return pd.DataFrame()
    table = pd.concat(rows, ignore_index=True)
    return table[["config", *[c for c in table if c != "config"]]]
