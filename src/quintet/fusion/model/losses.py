"""Losses: prediction, reconstruction of features, and contrast between the modalities of a patient. A batch that defines no loss
(no event, no pair) gives a differentiable zero."""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

LOG_DAYS = 6.0  # log of about 400 days: keeps the target of the mse near 0


def prediction_loss(scores: Tensor, target: Tensor, *, survival_loss: str) -> Tensor:
    """Cross-entropy of class scores `[B, classes]`; of risks `[B, 1]` Cox's partial likelihood per event (torchsurv) or, with
    `mse`, the squared error of the log time in days, which the negative risk predicts. `target` `[B, 2]`: class and 1, or time
    and event."""
    if scores.shape[1] > 1:
        return F.cross_entropy(scores, target[:, 0].long())
    risk, (time, event) = scores[:, 0], target.unbind(1)
    if survival_loss == "mse":
        return F.mse_loss(-risk, time.log() - LOG_DAYS)
    if not event.any() or len(risk) < 2:
        return risk.sum() * 0
    from torchsurv.loss.cox import neg_partial_log_likelihood

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are ties, for which Efron's method is
        loss = neg_partial_log_likelihood(risk, event.bool(), time, ties_method="efron")
    # torchsurv averages over the different times of events, so that coarse times would weigh more
    return loss * time[event > 0].unique().numel() / event.sum()


def loss_of_values(values: NDArray[np.float64], target: Tensor) -> float:
    """The same of predictions `[B, outputs]`: probabilities or risks."""
    scores = torch.from_numpy(np.log(np.maximum(values, 1e-12)) if values.shape[1] > 1 else values)
    return prediction_loss(scores, target, survival_loss="cox").item()


def reconstruction_loss(decoded: Sequence[Tensor], features: Sequence[Tensor], present: Tensor) -> Tensor:
    """Mean squared error of each modality's standardised features `[B, F_k]`, over the present modalities `[B, K]`.

    No gradient flows into the features, which could otherwise collapse to something easy to reconstruct.
    """
    errors = [F.mse_loss(a, standardised(b).detach(), reduction="none").mean(1) for a, b in zip(decoded, features, strict=True)]
    weight = present.float()
    return (torch.stack(errors, 1) * weight).sum() / weight.sum().clamp_min(1)


def standardised(features: Tensor) -> Tensor:
    """`[B, F]`, each row with mean 0 and variance 1."""
    return F.layer_norm(features, features.shape[-1:])


def contrastive_loss(tokens: Tensor, present: Tensor, *, temperature: float) -> Tensor:
    """InfoNCE (van den Oord et al. 2018, arXiv 1807.03748) in both directions between every two modalities: a patient's own token
    against those of the other patients who have both modalities. `tokens` `[B, K, D]`."""
    x = F.normalize(tokens, dim=-1)
    total, pairs = tokens.sum() * 0, 0
    for a in range(x.shape[1]):
        for b in range(a + 1, x.shape[1]):
            both = (present[:, a] & present[:, b]).nonzero()[:, 0]
            if len(both) > 1:
                logits = x[both, a] @ x[both, b].T / temperature
                own = torch.arange(len(both), device=logits.device)
                total = total + (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
                pairs += 1
    return total / max(1, pairs)
