"""From predictions to tables: what is scored on which modalities, Shapley values, imputation. No network here."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import factorial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.metrics import balanced_accuracy_score

from quintet.resampling import order_draws

Floats = NDArray[np.float64]
RECORDED, MCAR, MAR = "recorded", "at random", "by clinical row"
CLASSIFICATION, SURVIVAL = "brier", "concordance"  # what is ranked, per patient
SEED = 20240


def patterns(modalities: Sequence[str], present: NDArray[np.bool_], clinical: NDArray[np.floating[Any]], names: Sequence[str],
    *, missing:
             float) -> dict[str, NDArray[np.bool_]]:  # fmt: skip
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
    return float(np.mean([order_draws(score, pairs, ones)[0] for score, pairs in pairs_of(scores, target)]))


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
    return pd.DataFrame({
        CLASSIFICATION: ((values - truth) ** 2).sum(1) / 2,
        "log_loss": -np.log(np.clip((values * truth).sum(1), 1e-12, 1)),
        "correct": (values.argmax(1) == target[:, 0]).astype(float),
    })  # fmt: skip


def summary(predictions: pd.DataFrame, columns: Sequence[str]) -> dict[str, float]:
    """Of one variant's predictions: AUC (or concordance) by pattern, their mean over the subsets and the worst; balanced
    accuracy and Brier score with everything that is recorded."""
    values = {str(name): headline_of(own, columns) for name, own in predictions.groupby("pattern", sort=False)}
    score = "auc" if len(columns) > 1 else "concordance"
    subsets = [v for name, v in values.items() if name not in (RECORDED, MCAR, MAR) and np.isfinite(v)]
    metrics = {f"{score}/{name}": value for name, value in values.items()}
    if subsets:
        metrics |= {f"{score}_mean_of_subsets": float(np.mean(subsets)), f"{score}_worst_subset": float(np.min(subsets))}
    whole = predictions[predictions["pattern"] == RECORDED]
    if len(columns) > 1:
        likeliest = whole[list(columns)].to_numpy().argmax(1)
        metrics |= {"brier": whole[CLASSIFICATION].mean(), "log_loss": whole["log_loss"].mean(),
                    "balanced_accuracy": balanced_accuracy_score(whole["target"], likeliest)}  # fmt: skip
    return {name: float(v) for name, v in metrics.items() if np.isfinite(v)}


def headline_of(own: pd.DataFrame, columns: Sequence[Any]) -> float:
    """`headline` of predictions, whose probabilities are in order as their logarithms are; NaN where no pair is comparable."""
    values, target = own[list(columns)].to_numpy(float), own[["target", "event"]].to_numpy(float)
    scores = np.log(np.clip(values, 1e-12, 1)) if len(columns) > 1 else values
    return headline(scores, target) if all(pairs.any() for _, pairs in pairs_of(scores, target)) else float("nan")


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


def imputation(
    real: Floats, imputed: Floats, others: Floats, known: Floats, known_others: Floats
) -> dict[str, float]:  # fmt: skip
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
