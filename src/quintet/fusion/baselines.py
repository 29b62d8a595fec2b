"""The floor and the ceiling of the table. Floor: the clinical features alone, in a regularised linear model; for patients without
clinical features it predicts the class frequencies of the training data. Ceiling, for drawn patients: what the drawn truth allows
from each set of modalities."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegressionCV
from torch import Tensor

from quintet.fusion.data.prepared import Prepared
from quintet.fusion.evaluation.patterns import prepared_patterns
from quintet.fusion.evaluation.scores import evaluate, prepared_predictions
from quintet.fusion.model.losses import prediction_loss
from quintet.params import Fusion
from quintet.params.fusion import BASELINES
from quintet.runs import Record
from quintet.study import Baseline

PENALTIES = (0.003, 0.03, 0.3)
Floats = NDArray[np.float64]
# P patients' rows `[P]` and the modalities that are kept `[P, K]` -> probabilities `[P, classes]` or log hazards `[P, 1]`
Predict = Callable[[NDArray[np.int64], NDArray[np.bool_]], Floats]
FLOOR, CEILING = BASELINES
DRAWN_CLASS = "progression"  # the class that truth.csv has the probability of


def baselines(data: Prepared, params: Fusion) -> dict[str, Baseline]:
    missing, rows = params.evaluation.test_missing, data.rows("test")

    def baseline(name: str, fit: Callable[[], Predict]) -> Baseline:
        def evaluate_baseline(out: Path, record: Record) -> dict[str, float]:
            predict = fit()
            parts = [
                prepared_predictions(name, pattern, data, rows[chosen], kept, predict(rows[chosen], kept))
                for pattern, chosen, kept in prepared_patterns(data, rows, missing=missing)
            ]
            return evaluate({name: pd.concat(parts, ignore_index=True)}, data.classes, record=record, out=out)

        return Baseline({"test_missing": missing}, {}, evaluate_baseline)

    found = {FLOOR: baseline(FLOOR, lambda: fit_clinical_only(data))}
    if data.truth is not None and DRAWN_CLASS in data.classes and set(data.modalities) <= set(drawn_modalities(data.truth)):
        found[CEILING] = baseline(CEILING, partial(oracle, data, data.truth))
    return found


def drawn_modalities(truth: pd.DataFrame) -> list[str]:
    """The modalities that truth.csv knows, in the order of its columns' names."""
    return max((str(name).split("+") for name in truth), key=len)


def oracle(data: Prepared, truth: pd.DataFrame) -> Predict:
    """The probabilities that the drawn truth gives from the modalities that are kept."""
    own, patients, order = data.classes.index(DRAWN_CLASS), data.table["patient"].to_numpy(), drawn_modalities(truth)
    places = [order.index(name) for name in data.modalities]

    def column(kept: NDArray[np.bool_]) -> str:
        return "+".join(order[place] for place in sorted(p for p, k in zip(places, kept, strict=True) if k))

    def probabilities(rows: NDArray[np.int64], kept: NDArray[np.bool_]) -> Floats:
        values = np.zeros((len(rows), len(data.classes)))
        values[:, own] = [truth.at[patients[row], column(k)] for row, k in zip(rows, kept, strict=True)]
        values[:, 1 - own] = 1 - values[:, own]
        return values

    return probabilities


def fit_clinical_only(data: Prepared) -> Predict:
    """Fit logistic or Cox regression; penalties are chosen on training (cross-validation) or validation patients."""
    fit = np.concatenate([data.rows("train"), data.rows("valid")])
    fit = fit[data.present[fit, -1]]
    x, target = data.clinical.astype(float), data.target
    usable = bool(len(fit) and x.shape[1])
    if data.classes:
        in_fit_parts = np.flatnonzero(np.isin(data.table["split"], ["train", "valid"]))
        frequencies = np.bincount(target[in_fit_parts, 0].astype(int), minlength=len(data.classes)) / len(in_fit_parts)
        model = LogisticRegressionCV(Cs=10, cv=5, max_iter=1000, scoring="neg_log_loss")
        if usable:
            model.fit(x[fit], target[fit, 0].astype(int))

        def probabilities(rows: NDArray[np.int64], kept: NDArray[np.bool_]) -> Floats:
            values = np.tile(frequencies, (len(rows), 1))
            if usable:
                known = kept[:, -1]
                values[np.ix_(known, model.classes_.astype(int))] = model.predict_proba(x[rows])[known]
            return values

        return probabilities
    weights = np.zeros(x.shape[1])
    if usable:
        train, valid = (part[data.present[part, -1]] for part in (data.rows("train"), data.rows("valid")))
        fits = [_cox_regression(x, target, train, penalty) for penalty in PENALTIES]
        weights = min(fits, key=lambda w: _cox_loss(x, target, valid, w))

    def log_hazards(rows: NDArray[np.int64], kept: NDArray[np.bool_]) -> Floats:
        return np.where(kept[:, -1], x[rows] @ weights, 0.0)[:, None]

    return log_hazards


def _cox_regression(x: Floats, target: NDArray[np.float32], rows: NDArray[np.int64], penalty: float) -> Floats:
    """Coefficients `[C]` of a ridge-penalised Cox regression, by L-BFGS on torchsurv's partial likelihood."""
    features, known = torch.from_numpy(x[rows]), torch.from_numpy(target[rows])
    weights = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = prediction_loss((features @ weights)[:, None], known, survival_loss="cox") + penalty * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach().numpy()


def _cox_loss(x: Floats, target: NDArray[np.float32], rows: NDArray[np.int64], weights: Floats) -> float:
    scores = torch.from_numpy(x[rows] @ weights)[:, None]
    return prediction_loss(scores, torch.from_numpy(target[rows]), survival_loss="cox").item()
