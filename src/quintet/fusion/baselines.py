"""What a network must beat: the clinical row alone, by a regularised linear model. Patients without it get what training says of
everybody."""

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegressionCV
from torch import Tensor

from quintet.fusion.data import Prepared
from quintet.fusion.losses import prediction_loss

PENALTIES = (0.003, 0.03, 0.3)
Floats = NDArray[np.float64]


def clinical_only(data: Prepared, rows: NDArray[np.int64], kept: NDArray[np.bool_]) -> Floats:
    """Probabilities `[P, classes]` by logistic regression, or log hazards `[P, 1]` by Cox regression, of the rows whose
    clinical row is `kept` `[P]`; penalties are chosen on training (cross-validation) and validation patients."""
    fit = np.concatenate([data.rows("train"), data.rows("valid")])
    fit = fit[data.present[fit, -1]]
    train = np.flatnonzero(np.isin(data.table["split"], ["train", "valid"]))
    x, target = data.clinical.astype(float), data.target
    if data.classes:
        share = np.bincount(target[train, 0].astype(int), minlength=len(data.classes)) / len(train)
        said = np.tile(share, (len(rows), 1))
        if len(fit) and x.shape[1]:
            model = LogisticRegressionCV(Cs=10, cv=5, max_iter=1000, scoring="neg_log_loss").fit(
                x[fit], target[fit, 0].astype(int)
            )
            said[np.ix_(kept, model.classes_.astype(int))] = model.predict_proba(x[rows])[kept]
        return said
    risk = np.zeros((len(rows), 1))
    if len(fit) and x.shape[1]:
        own_train, own_valid = (own[data.present[own, -1]] for own in (data.rows("train"), data.rows("valid")))
        found = [(_cox_loss(x, target, own_valid, w := _cox(x, target, own_train, penalty)), w) for penalty in PENALTIES]
        risk[kept, 0] = (x[rows] @ min(found, key=lambda one: one[0])[1])[kept]
    return risk


def _cox(x: Floats, target: NDArray[np.float32], rows: NDArray[np.int64], penalty: float) -> Floats:
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
