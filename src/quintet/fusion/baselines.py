"""A baseline that a network must beat: the clinical features alone, in a regularised linear model. For patients without clinical
features it predicts the class frequencies of the training data."""

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


def baselines(data: Prepared, params: Fusion) -> dict[str, Baseline]:
    (name,) = BASELINES
    missing = params.evaluation.test_missing

    def evaluate_clinical_only(out: Path, record: Record) -> dict[str, float]:
        rows = data.rows("test")
        parts = [
            prepared_predictions(name, pattern, data, rows[chosen], kept, clinical_only(data, rows[chosen], kept[:, -1]))
            for pattern, chosen, kept in prepared_patterns(data, rows, missing=missing)
        ]
        return evaluate({name: pd.concat(parts, ignore_index=True)}, data.classes, record=record, out=out)

    return {name: Baseline({"test_missing": missing}, {}, evaluate_clinical_only)}


def clinical_only(data: Prepared, rows: NDArray[np.int64], kept: NDArray[np.bool_]) -> Floats:
    """Probabilities `[P, classes]` by logistic regression, or log hazards `[P, 1]` by Cox regression, for the patients in `rows`
    whose clinical features are `kept` `[P]`. Penalties are chosen on training (cross-validation) or validation patients."""
    fit = np.concatenate([data.rows("train"), data.rows("valid")])
    fit = fit[data.present[fit, -1]]
    x, target = data.clinical.astype(float), data.target
    usable = len(fit) and x.shape[1]
    if data.classes:
        in_fit_parts = np.flatnonzero(np.isin(data.table["split"], ["train", "valid"]))
        frequencies = np.bincount(target[in_fit_parts, 0].astype(int), minlength=len(data.classes)) / len(in_fit_parts)
        probabilities = np.tile(frequencies, (len(rows), 1))
        if usable:
            model = LogisticRegressionCV(Cs=10, cv=5, max_iter=1000, scoring="neg_log_loss")
            model.fit(x[fit], target[fit, 0].astype(int))
            probabilities[np.ix_(kept, model.classes_.astype(int))] = model.predict_proba(x[rows])[kept]
        return probabilities
    risk = np.zeros((len(rows), 1))
    if usable:
        train, valid = (part[data.present[part, -1]] for part in (data.rows("train"), data.rows("valid")))
        weights = [_cox_regression(x, target, train, penalty) for penalty in PENALTIES]
        best = min(weights, key=lambda w: _cox_loss(x, target, valid, w))
        risk[kept, 0] = (x[rows] @ best)[kept]
    return risk


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
