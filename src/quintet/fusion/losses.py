"""Prediction, reconstruction of features, contrast between modalities of one patient. A batch that teaches nothing gives zero
with a graph."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def prediction_loss(scores: Tensor, target: Tensor, *, survival_loss: str) -> Tensor:
    """`scores` `[B, outputs]`; `target` `[B, 2]`: class and 1, or time and event. Classes: cross-entropy. One output: Cox's
    partial likelihood (torchsurv), or for `mse` the squared error of the standardised log time, whose prediction is minus the
    risk."""
    if scores.shape[1] > 1:
        return F.cross_entropy(scores, target[:, 0].long())
    risk, (time, event) = scores[:, 0], target.unbind(1)
    if survival_loss == "mse":
        return F.mse_loss(-risk, time.log() - LOG_DAYS)
    if not event.any() or len(risk) < 2:
        return risk.sum() * 0
    from torchsurv.loss.cox import neg_partial_log_likelihood

    return neg_partial_log_likelihood(risk, event.bool(), time, ties_method="efron")


LOG_DAYS = 6.0  # log of about 400 days: keeps the mse's target near 0


def reconstruction_loss(decoded: Sequence[Tensor], features: Sequence[Tensor], present: Tensor) -> Tensor:
    """Mean squared error of each modality's standardised features `[B, F_k]`, over the modalities that are there. Without
    gradient into the features, which could else be made easy to guess."""
    each = [F.mse_loss(a, standardised(b).detach(), reduction="none").mean(1) for a, b in zip(decoded, features, strict=True)]
    share = present.float()
    return (torch.stack(each, 1) * share).sum() / share.sum().clamp_min(1)


def standardised(features: Tensor) -> Tensor:
    """`[B, F]`, each row of mean 0 and variance 1."""
    return F.layer_norm(features, features.shape[-1:])


def contrastive_loss(tokens: Tensor, present: Tensor, *, temperature: float) -> Tensor:
    """InfoNCE (van den Oord et al. 2018, arXiv 1807.03748) both ways between each two modalities: a patient's own against those
    of the other patients that have both. `tokens` `[B, K, D]`."""
    x = F.normalize(tokens, dim=-1)
    total, pairs = tokens.sum() * 0, 0
    for a in range(x.shape[1]):
        for b in range(a + 1, x.shape[1]):
            both = (present[:, a] & present[:, b]).nonzero()[:, 0]
            if len(both) > 1:
                score = x[both, a] @ x[both, b].T / temperature
                own = torch.arange(len(both), device=score.device)
                total = total + (F.cross_entropy(score, own) + F.cross_entropy(score.T, own)) / 2
                pairs += 1
    return total / max(1, pairs)


def contrast_with_bank(tokens: Tensor, present: Tensor, bank: Tensor, known: Tensor, *, temperature: float) -> Tensor:
    """The same for one patient, `tokens` `[K, D]`, against `bank` `[N, K, D]` of training patients (`known` `[N, K]`: what they
    have), so that the result depends on no batch mates. In plain operations, for torch.func."""
    x, others = F.normalize(tokens, dim=-1), F.normalize(bank, dim=-1)
    own = x @ x.T / temperature  # [K, K]
    across = torch.einsum("ad,nbd->abn", x, others) / temperature
    across = across.masked_fill(~known.T[None], -1e4)
    each = torch.logsumexp(torch.cat([own[..., None], across], -1), -1) - own
    pairs = (present[:, None] & present[None, :] & ~torch.eye(len(x), dtype=torch.bool, device=x.device)).float()
    return (each * pairs).sum() / pairs.sum().clamp_min(1)
