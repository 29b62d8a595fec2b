"""Losses: prediction, reconstruction of features, and contrast between the modalities of a patient. A batch that defines no loss
(no event, no pair) gives a differentiable zero."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_DAYS = 6.0  # log of about 400 days: keeps the target of the mse near 0


def prediction_loss(scores: Tensor, target: Tensor, *, survival_loss: str) -> Tensor:
    """Cross-entropy of class scores `[B, classes]`; of risks `[B, 1]` Cox's partial likelihood (torchsurv) or, with `mse`, the
    squared error of the log time in days, which the negative risk predicts. `target` `[B, 2]`: class and 1, or time and event."""
    if scores.shape[1] > 1:
        return F.cross_entropy(scores, target[:, 0].long())
    risk, (time, event) = scores[:, 0], target.unbind(1)
    if survival_loss == "mse":
        return F.mse_loss(-risk, time.log() - LOG_DAYS)
    if not event.any() or len(risk) < 2:
        return risk.sum() * 0
    from torchsurv.loss.cox import neg_partial_log_likelihood

    return neg_partial_log_likelihood(risk, event.bool(), time, ties_method="efron")


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


def contrast_with_bank(tokens: Tensor, present: Tensor, bank: Tensor, known: Tensor, *, temperature: float) -> Tensor:
    """The contrastive loss of one patient, `tokens` `[K, D]`, against a `bank` `[N, K, D]` of training patients (`known` `[N,
    K]`: their present modalities), so that the loss does not depend on the other patients of a batch. In plain operations, for
    torch.func."""
    x, others = F.normalize(tokens, dim=-1), F.normalize(bank, dim=-1)
    own = x @ x.T / temperature  # [K, K]
    across = torch.einsum("ad,nbd->abn", x, others) / temperature
    across = across.masked_fill(~known.T[None], -1e4)
    losses = torch.logsumexp(torch.cat([own[..., None], across], -1), -1) - own
    pairs = (present[:, None] & present[None, :] & ~torch.eye(len(x), dtype=torch.bool, device=x.device)).float()
    return (losses * pairs).sum() / pairs.sum().clamp_min(1)
