"""From predictions to tables: what is scored on which modalities, Shapley values, imputation. No network here."""

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
from quintet.files import atomic_folder, write_json
from quintet.params.fusion import TTT
from quintet.resampling import bootstrap_concordance
from quintet.runs import Record

Floats = NDArray[np.float64]
RECORDED, MCAR, MAR = NOT_SUBSETS = ("recorded", "at random", "by clinical row")
CLASSIFICATION, SURVIVAL = "brier", "concordance"  # what is ranked, per patient
SEED = 20240


def patterns(
    modalities: Sequence[str],
    present: NDArray[np.bool_],
    clinical: NDArray[np.floating[Any]],
    names: Sequence[str],
    *,
    missing: float,
) -> dict[str, NDArray[np.bool_]]:
    """What each patient is predicted from `[P, K]`, by pattern; a row without any: the patient does not count there.

    Each non-empty subset of the modalities, for the patients that have all of it; `recorded`: whatever they have; and that with
    a share `missing` withheld once more, completely at random, or more often the higher the clinical row stands (its mean
    standardised value; the clinical row itself stays)."""
    count = len(modalities)
    found = {}
    for size in range(1, count + 1):
        for chosen in combinations(range(count), size):
            mask = np.zeros(count, bool)
            mask[list(chosen)] = True
            complete = np.asarray(present[:, mask].all(axis=1))
            found["+".join(modalities[k] for k in chosen)] = np.logical_and(complete[:, None], mask[None, :])
    found[RECORDED] = present
    drawn = np.stack([np.random.default_rng([SEED, *name.encode()]).random(count) for name in names])
    found[MCAR] = _never_nothing(present & (drawn >= missing), present)
    height = clinical.mean(1) if clinical.shape[1] else np.zeros(len(present))
    rank = (np.argsort(np.argsort(height)) + 0.5) / len(height)  # 0 to 1: the mean chance is `missing`
    chance = np.minimum(2 * missing * rank, 1)[:, None] * np.array([1.0] * (count - 1) + [0.0])
    found[MAR] = _never_nothing(present & (drawn >= chance), present)
    return found


def _never_nothing(kept: NDArray[np.bool_], present: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where everything was withheld, the first modality that is there comes back."""
    first = np.zeros_like(present)
    first[np.arange(len(present)), present.argmax(1)] = True
    return np.asarray(np.where(np.asarray(kept.any(axis=1))[:, None], kept, present & first))


def headline(scores: NDArray[np.floating[Any]], target: NDArray[np.floating[Any]]) -> float:
    """AUC (several classes: the mean of each against the rest) of scores `[P, outputs]`, or the concordance index of one
    output."""
    ones = np.ones((1, len(target)))
    return float(np.mean([bootstrap_concordance(score, pairs, ones)[0] for score, pairs in pairs_of(scores, target)]))


def pairs_of(scores: NDArray[np.floating[Any]], target: NDArray[np.floating[Any]]) -> list[tuple[Floats, NDArray[np.bool_]]]:
    """For each class (or the risk) a score `[P]` and which pairs it should put in order `[P, P]`."""
    if scores.shape[1] == 1:
        time, event = target[:, 0], target[:, 1] > 0
        return [(scores[:, 0].astype(float), event[:, None] & (time[:, None] < time[None, :]))]
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    classes = range(1, 2) if scores.shape[1] == 2 else range(scores.shape[1])
    own = target[:, 0]
    return [(p[:, k].astype(float), (own[:, None] == k) & (own[None, :] != k)) for k in classes]


def patient_scores(values: Floats, target: NDArray[np.floating[Any]], *, classes: int) -> pd.DataFrame:
    """Of each patient: for probabilities `[P, classes]` Brier score (half the squared distance), log loss and whether the
    likeliest class is right; for risks `[P, 1]` the share of comparable pairs it stands in that are in order (NaN: none)."""
    if not classes:
        ((risk, pairs),) = pairs_of(values, target)
        right = (risk[:, None] > risk[None, :]) + 0.5 * (risk[:, None] == risk[None, :])
        mine = pairs.sum(1) + pairs.sum(0)
        both = (right * pairs).sum(1) + (right * pairs).sum(0)
        return pd.DataFrame({SURVIVAL: np.where(mine > 0, both / np.maximum(mine, 1), np.nan)})
    truth = np.eye(classes)[target[:, 0].astype(int)]
    return pd.DataFrame(
        {
            CLASSIFICATION: ((values - truth) ** 2).sum(1) / 2,
            "log_loss": -np.log(np.clip((values * truth).sum(1), 1e-12, 1)),
            "correct": (values.argmax(1) == target[:, 0]).astype(float),
        }
    )


def summary(predictions: pd.DataFrame, columns: Sequence[str]) -> dict[str, float]:
    """Of one variant's predictions: AUC (or concordance) by pattern, their mean over the subsets and the worst; balanced
    accuracy and Brier score with everything that is recorded."""
    values = {str(name): headline_of(own, columns) for name, own in predictions.groupby("pattern", sort=False)}
    score = "auc" if len(columns) > 1 else "concordance"
    subsets = [v for name, v in values.items() if name not in NOT_SUBSETS and np.isfinite(v)]
    metrics = {f"{score}/{name}": value for name, value in values.items()}
    if subsets:
        metrics |= {f"{score}_mean_of_subsets": float(np.mean(subsets)), f"{score}_worst_subset": float(np.min(subsets))}
    whole = predictions[predictions["pattern"] == RECORDED]
    metrics["patients"] = float(len(whole))
    if len(columns) > 1:
        likeliest = whole[list(columns)].to_numpy().argmax(1)
        metrics |= {
            "brier": whole[CLASSIFICATION].mean(),
            "log_loss": whole["log_loss"].mean(),
            "balanced_accuracy": balanced_accuracy_score(whole["target"], likeliest),
        }
    return {name: float(v) for name, v in metrics.items() if np.isfinite(v)}


def headline_of(own: pd.DataFrame, columns: Sequence[Any]) -> float:
    """`headline` of predictions, whose probabilities are in order as their logarithms are; NaN where no pair is comparable."""
    values, target = own[list(columns)].to_numpy(float), own[["target", "event"]].to_numpy(float)
    scores = np.log(np.clip(values, 1e-12, 1)) if len(columns) > 1 else values
    return headline(scores, target) if all(pairs.any() for _, pairs in pairs_of(scores, target)) else float("nan")


def predictions(
    config: str,
    pattern: str,
    patients: NDArray[Any],
    used: Sequence[str],
    values: Floats,
    target: NDArray[np.floating[Any]],
    classes: Sequence[str],
    *,
    spread: Floats | float = 0.0,
    adapted: NDArray[np.bool_] | bool = False,
) -> pd.DataFrame:
    """A row a patient, predicted from the modalities `used` by `pattern`: probabilities `[P, classes]` or risk `[P, 1]`, their
    spread over draws, whether it adapted, its target (class, 1; time, event) and scores."""
    table = pd.DataFrame({"config": config, "pattern": pattern, "patient": patients})
    table[columns_of(classes)] = values
    table = table.assign(modalities=used, target=target[:, 0], event=target[:, 1], spread=spread, adapted=np.int64(adapted))
    return pd.concat([table, patient_scores(values, target, classes=len(classes))], axis=1)


def columns_of(classes: Sequence[str]) -> list[str]:
    return [f"probability/{name}" for name in classes] or ["risk"]


def evaluate(
    tables: Mapping[str, pd.DataFrame],
    classes: Sequence[str],
    *,
    record: Record,
    out: Path,
    seconds: Mapping[str, float] | None = None,
    extra: Mapping[str, pd.DataFrame] | None = None,
    model: Path | None = None,
) -> dict[str, float]:
    """Measure `predictions` of one configuration, or without and with test-time training (`ttt/` in the metrics); writes `out` =
    {predictions.csv, cases.csv (a patient's mean score over the subsets), metrics.json, figures/, what `extra` holds}.

    `model`: the folder with the training's history, for a figure.
    """
    from quintet.fusion import figures

    columns = columns_of(classes)
    metric = CLASSIFICATION if classes else SURVIVAL
    metrics: dict[str, float] = {}
    tidy = []
    for config, table in tables.items():
        prefix = "ttt/" if config.endswith(TTT) else ""
        metrics |= {f"{prefix}{name}": value for name, value in summary(table, columns).items()}
        if seconds:
            metrics[f"{prefix}seconds_per_prediction"] = seconds[config]
        subsets = table[~table["pattern"].isin(NOT_SUBSETS)].dropna(subset=[metric])
        whole = table[table["pattern"] == RECORDED].set_index("patient")
        values = pd.DataFrame(
            {
                f"{metric}_over_subsets": subsets.groupby("patient")[metric].mean(),
                metric: whole[metric],
            }
        )
        tidy.append(
            results.tidy(
                values, record.study, config, fold=record.fold, seed=record.seed, cases=values.index, groups=values.index
            )
        )
    if len(tables) == 2:
        plain, adapted = tables.values()
        metrics |= _harm(plain, adapted, "log_loss" if classes else SURVIVAL, lower_is_better=bool(classes))
    for row in ((extra or {}).get("imputation", pd.DataFrame())).to_dict("records"):
        name = row.pop("modality")
        metrics |= {f"imputation/{name}/{key}": float(v) for key, v in row.items() if key != "patients"}
    with atomic_folder(out) as folder:
        pd.concat(tables.values()).to_csv(folder / "predictions.csv", index=False)
        results.write(pd.concat(tidy, ignore_index=True).dropna(subset="value"), folder / "cases.csv")
        for name, table in (extra or {}).items():
            table.to_csv(folder / f"{name}.csv", index=False)
        write_json(folder / "metrics.json", metrics)
        (folder / "figures").mkdir()
        figures.draw_all(folder / "figures", tables, columns, extra or {}, title=record.name, model=model)
    return metrics


def _harm(plain: pd.DataFrame, adapted: pd.DataFrame, metric: str, *, lower_is_better: bool) -> dict[str, float]:
    """What test-time training does to patients with everything that is recorded: share that adapted (their loss fell), share
    whose score became worse (harm rate), became better, and the mean change."""
    a, b = (t[t["pattern"] == RECORDED].set_index("patient") for t in (plain, adapted))
    change = (b[metric] - a[metric]) * (1 if lower_is_better else -1)
    return {
        "ttt/adapted_rate": float(b["adapted"].mean()),
        "ttt/harm_rate": float((change > 1e-9).mean()),
        "ttt/help_rate": float((change < -1e-9).mean()),
        f"ttt/change_of_{metric}": float((b[metric] - a[metric]).mean()),
    }


def shapley(value: Mapping[frozenset[str], float], players: Sequence[str]) -> dict[str, float]:
    """Shapley (1953) values: what each modality adds, averaged over all orders of adding them. `value` of every subset, the
    empty one included."""
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
    """How close imputed features `[P, F]` are to the real ones, beside what a ridge regression says from the other modalities'
    features (the conditional mean, linear; fitted on training patients: `known` `[N, F]` from `known_others` `[N, G]`) and
    beside their mean."""
    ridge = Ridge(alpha=10.0).fit(known_others, known)
    guesses = {"imputed": imputed, "ridge": ridge.predict(others), "mean": np.broadcast_to(known.mean(0), real.shape)}
    found = {}
    for name, guess in guesses.items():
        lengths = np.linalg.norm(guess, axis=1) * np.linalg.norm(real, axis=1)
        found[f"cosine/{name}"] = float(((guess * real).sum(1) / np.maximum(lengths, 1e-12)).mean())
        found[f"mse/{name}"] = float(((guess - real) ** 2).mean())
    return found
