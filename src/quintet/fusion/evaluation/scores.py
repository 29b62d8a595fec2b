"""From predictions to scores: per patient, per pattern of modalities, Shapley values, imputation. Importing it does not import
torch."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import factorial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.metrics import balanced_accuracy_score

from quintet import results
from quintet.calibration import expected_calibration_error
from quintet.fusion.data.prepared import EXTERNAL, Prepared
from quintet.fusion.evaluation import figures
from quintet.fusion.evaluation.patterns import NOT_SUBSETS, RECORDED
from quintet.fusion.metrics import auc_or_concordance_of, comparable_pairs
from quintet.jackknife import pseudo_values
from quintet.params.fusion import TTT
from quintet.runs import Record

Floats = NDArray[np.float64]
CLASSIFICATION, SURVIVAL = "brier", "concordance"  # the ranked score of each task, per patient


def patient_scores(values: Floats, target: NDArray[np.floating[Any]], *, classes: int) -> pd.DataFrame:
    """One row per patient. Probabilities `[P, classes]`: Brier score (half the squared distance), log loss, and whether the most
    likely class is correct. Risks `[P, 1]`: the share of the patient's comparable pairs in the right order (NaN: no pair)."""
    if not classes:
        ((risk, pairs),) = comparable_pairs(values, target)
        correct = (risk[:, None] > risk[None, :]) + 0.5 * (risk[:, None] == risk[None, :])
        count = pairs.sum(1) + pairs.sum(0)
        total = (correct * pairs).sum(1) + (correct * pairs).sum(0)
        return pd.DataFrame({SURVIVAL: np.where(count > 0, total / np.maximum(count, 1), np.nan)})
    truth = np.eye(classes)[target[:, 0].astype(int)]
    return pd.DataFrame(
        {
            CLASSIFICATION: ((values - truth) ** 2).sum(1) / 2,
            "log_loss": -np.log(np.clip((values * truth).sum(1), 1e-12, 1)),
            "correct": (values.argmax(1) == target[:, 0]).astype(float),
        }
    )


def summary(predictions: pd.DataFrame, columns: Sequence[str]) -> dict[str, float]:
    """Metrics of one configuration's predictions: AUC or concordance index by pattern, its mean over the subsets and the worst
    one; balanced accuracy, Brier score and log loss from all recorded modalities."""
    values = {str(name): auc_or_concordance_of(rows, columns) for name, rows in predictions.groupby("pattern", sort=False)}
    score = "auc" if len(columns) > 1 else "concordance"
    subsets = [v for name, v in values.items() if name not in NOT_SUBSETS and np.isfinite(v)]
    metrics = {f"{score}/{name}": value for name, value in values.items()}
    if subsets:
        metrics |= {f"{score}_mean_of_subsets": float(np.mean(subsets)), f"{score}_worst_subset": float(np.min(subsets))}
    recorded = predictions[predictions["pattern"] == RECORDED]
    metrics["patients"] = float(len(recorded))
    if len(columns) > 1:
        predicted = recorded[list(columns)].to_numpy().argmax(1)
        metrics |= {
            "brier": recorded[CLASSIFICATION].mean(),
            "log_loss": recorded["log_loss"].mean(),
            "balanced_accuracy": balanced_accuracy_score(recorded["target"], predicted),
        }
    return {name: float(v) for name, v in metrics.items() if np.isfinite(v)}


def predictions(
    config: str,
    pattern: str,
    patients: NDArray[Any],
    used: Sequence[str],
    values: Floats,
    target: NDArray[np.floating[Any]],
    classes: Sequence[str],
    *,
    subjects: Sequence[str] | None = None,
    spread: Floats | float = 0.0,
    adapted: NDArray[np.bool_] | bool = False,
) -> pd.DataFrame:
    """One row per patient: the person (`subjects`; None: nobody has a second visit), the modalities `used`, probabilities
    `[P, classes]` or risk `[P, 1]`, their spread over samples, whether the weights were adapted, target (class and 1, or time
    and event) and scores."""
    people = patients if subjects is None else subjects
    table = pd.DataFrame({"config": config, "pattern": pattern, "patient": patients, "subject": people})
    table[prediction_columns(classes)] = values
    table = table.assign(modalities=used, target=target[:, 0], event=target[:, 1], spread=spread, adapted=np.int64(adapted))
    return pd.concat([table, patient_scores(values, target, classes=len(classes))], axis=1)


def prepared_predictions(
    config: str,
    pattern: str,
    data: Prepared,
    rows: NDArray[np.int64],
    kept: NDArray[np.bool_],
    values: Floats,
    spread: Floats | float = 0.0,
    adapted: NDArray[np.bool_] | bool = False,
) -> pd.DataFrame:
    """`predictions` of `rows` of a prepared data set, predicted from the modalities `kept` `[P, K]`."""
    patients, subjects = data.table[["patient", "subject"]].to_numpy()[rows].T
    used = ["+".join(np.array(data.modalities)[own]) for own in kept]
    target = data.target[rows].astype(float)
    return predictions(
        config, pattern, patients, used, values, target, data.classes, subjects=subjects, spread=spread, adapted=adapted
    )


def prediction_columns(classes: Sequence[str]) -> list[str]:
    return [f"probability/{name}" for name in classes] or ["risk"]


def evaluate(
    tables: Mapping[str, pd.DataFrame],
    classes: Sequence[str],
    *,
    record: Record,
    out: Path,
    seconds: Mapping[str, float] | None = None,
    details: Mapping[str, pd.DataFrame] | None = None,
    history: pd.DataFrame | None = None,
) -> dict[str, float]:
    """Score the predictions of a configuration, `{config: table}`, and with test-time training, `{config-ttt: table}`; returns
    the metrics (those with test-time training under `ttt/`).

    Writes predictions.csv, cases.csv (each patient's score, and its mean over the subsets), the tables `details` and figures/
    into `out`. `seconds`: per prediction. `history`: the training history, for a figure."""
    columns, details = prediction_columns(classes), details or {}
    metrics: dict[str, float] = {}
    tidy = []
    for config, table in tables.items():
        prefix = "ttt/" if config.endswith(TTT) else ""
        metrics |= {f"{prefix}{name}": value for name, value in summary(table, columns).items()}
        if seconds:
            metrics[f"{prefix}seconds_per_prediction"] = seconds[config]
        values = brier_scores(table) if classes else concordance_scores(table)
        people = table.groupby("patient")["subject"].first()[values.index]
        tidy.append(
            results.to_tidy(
                values, record.study, config, fold=record.fold, seed=record.seed, cases=values.index, groups=list(people)
            )
        )
    external = {config: details[EXTERNAL].query("config == @config") for config in tables} if EXTERNAL in details else {}
    for config, table in external.items():
        prefix = "ttt/external/" if config.endswith(TTT) else "external/"
        metrics |= {f"{prefix}{name}": value for name, value in summary(table, columns).items()}
    for prefix, pair in (("ttt/", tables), ("ttt/external/", external)):
        if len(pair) == 2:
            plain, adapted = pair.values()
            metric = "log_loss" if classes else SURVIVAL
            metrics |= _adaptation_metrics(prefix, plain, adapted, metric, lower=bool(classes))
    for row in details.get("imputation", pd.DataFrame()).to_dict("records"):
        name = row.pop("modality")
        metrics |= {f"imputation/{name}/{key}": float(v) for key, v in row.items() if key != "patients"}
    for row in details.get("completion", pd.DataFrame()).to_dict("records"):
        missing = int(row.pop("missing"))
        metrics |= {f"completion/{missing} missing/{key}": float(v) for key, v in row.items() if np.isfinite(v)}
    pd.concat(tables.values()).to_csv(out / "predictions.csv", index=False)
    results.write(pd.concat(tidy, ignore_index=True).dropna(subset="value"), out / "cases.csv")
    for name, table in details.items():
        table.to_csv(out / f"{name}.csv", index=False)
    (out / "figures").mkdir()
    figures.plot_all(out / "figures", tables, columns, details.get("curves"), title=record.name, history=history)
    return metrics


def brier_scores(table: pd.DataFrame) -> pd.DataFrame:
    """Each patient's Brier score from all recorded modalities, and its mean over the patient's subsets."""
    subsets = table[~table["pattern"].isin(NOT_SUBSETS)]
    recorded = table[table["pattern"] == RECORDED].set_index("patient")
    means = subsets.groupby("patient")[CLASSIFICATION].mean()
    return pd.DataFrame({f"{CLASSIFICATION}_over_subsets": means, CLASSIFICATION: recorded[CLASSIFICATION]})


def concordance_scores(table: pd.DataFrame) -> pd.DataFrame:
    """Each patient's pseudo-values of the concordance index from all recorded modalities, and of its mean over the subsets.

    A subset is scored on the n of N patients who have it, so its pseudo-values enter with the weight N / n."""
    by_pattern = {
        str(name): pd.Series(
            _pseudo_values(rows["risk"].to_numpy(float), rows[["target", "event"]].to_numpy(float)), rows["patient"]
        )
        for name, rows in table.groupby("pattern", sort=False)
    }
    subsets = [v for name, v in by_pattern.items() if name not in NOT_SUBSETS and v.notna().all()]
    values = pd.DataFrame({SURVIVAL: by_pattern[RECORDED]})
    if subsets:
        deviations = pd.concat([(v - v.mean()) / len(v) for v in subsets], axis=1).fillna(0).mean(axis=1)
        mean = float(np.mean([v.mean() for v in subsets]))
        values = values.join((mean + len(deviations) * deviations).rename(f"{SURVIVAL}_over_subsets"), how="outer")
    return values


def _pseudo_values(risk: Floats, target: Floats) -> Floats:
    """The concordance index of risks `[P]` as jackknife pseudo-values of the patients; NaN if no pair is comparable."""
    ((_, pairs),) = comparable_pairs(risk[:, None], target)
    if not pairs.any():
        return np.full(len(risk), np.nan)
    ordered = ((risk[:, None] > risk[None, :]) + 0.5 * (risk[:, None] == risk[None, :])) * pairs
    correct, count = (m.sum() - m.sum(0) - m.sum(1) for m in (ordered, pairs.astype(float)))
    value = float(ordered.sum() / pairs.sum())
    return pseudo_values(value, np.where(count > 0, correct / np.maximum(count, 1), value))


def _adaptation_metrics(prefix: str, plain: pd.DataFrame, adapted: pd.DataFrame, metric: str, *, lower: bool) -> dict[str, float]:
    """What test-time training changes for patients with all their modalities: the share that was adapted, the shares whose score
    became worse (harm rate) and better, and the mean change of the metric, of which `lower` or higher is better."""
    a, b = (t[t["pattern"] == RECORDED].set_index("patient") for t in (plain, adapted))
    change = (b[metric] - a[metric]).dropna()  # survival: of patients with a comparable pair
    worse = change * (1 if lower else -1)
    return {
        f"{prefix}adapted_rate": float(b["adapted"].mean()),
        f"{prefix}harm_rate": float((worse > 1e-9).mean()),
        f"{prefix}help_rate": float((worse < -1e-9).mean()),
        f"{prefix}change_of_{metric}": float(change.mean()),
    }


def shapley(value: Mapping[frozenset[str], float], players: Sequence[str]) -> dict[str, float]:
    """Shapley (1953) values: what each modality adds, averaged over all orders of adding them. `value`: of every subset,
    including the empty one."""
    n = len(players)
    result = {}
    for player in players:
        others = [p for p in players if p != player]
        result[player] = sum(
            factorial(size)
            * factorial(n - size - 1)
            / factorial(n)
            * (value[frozenset({*chosen, player})] - value[frozenset(chosen)])
            for size in range(n)
            for chosen in combinations(others, size)
        )
    return result


def imputation(real: Floats, imputed: Floats, others: Floats, known: Floats, known_others: Floats) -> dict[str, float]:
    """Cosine similarity and mean squared error between real features `[P, F]` and the imputed ones, and for comparison those of a
    ridge regression on the features of the `others` `[P, G]` (fitted on training patients: `known` `[N, F]` from `known_others`
    `[N, G]`) and of the training mean."""
    ridge = Ridge(alpha=10.0).fit(known_others, known)
    estimates = {"imputed": imputed, "ridge": ridge.predict(others), "mean": np.broadcast_to(known.mean(0), real.shape)}
    found = {}
    for name, estimate in estimates.items():
        lengths = np.linalg.norm(estimate, axis=1) * np.linalg.norm(real, axis=1)
        found[f"cosine/{name}"] = float(((estimate * real).sum(1) / np.maximum(lengths, 1e-12)).mean())
        found[f"mse/{name}"] = float(((estimate - real) ** 2).mean())
    return found


def completion(true: Floats, draws: Floats) -> dict[str, float]:
    """How good N completions `[N, P, F]` of P patients' missing tokens `[P, F]` are: mean squared error of their mean, energy
    score (Gneiting and Raftery 2007; of a single completion its distance), and, of several draws, the share of numbers that their
    80 % intervals cover, and their SD. For comparison the mean squared error of the training mean, which is zero."""
    count, distance = len(draws), np.linalg.norm(draws - true, axis=-1).mean(0)
    found = {"mse": float(((draws.mean(0) - true) ** 2).mean()), "mse_of_training_mean": float((true**2).mean())}
    if count == 1:
        return found | {"energy": float(distance.mean())}
    between = np.mean([np.linalg.norm(draws - one, axis=-1).sum(0) for one in draws], 0) / (count - 1)
    low, high = np.quantile(draws, [0.1, 0.9], axis=0, method="weibull")
    return found | {
        "energy": float((distance - between / 2).mean()),
        "coverage_80": float(((low <= true) & (true <= high)).mean()),
        "sd": float(draws.std(0, ddof=1).mean()),
    }


def calibration_error(predictions: pd.DataFrame, columns: Sequence[str]) -> float:
    """The expected calibration error of the most likely class."""
    p = predictions[list(columns)].to_numpy(float)
    return expected_calibration_error(p.argmax(1) == predictions["target"].to_numpy(int), p.max(1))
