"""Focal loss on soft targets, and mixup of whole quadruples."""

import torch
from torch import Tensor


def soft_targets(targets: Tensor, smoothing: float) -> Tensor:
    """Label smoothing: targets `[B, K]` with the share `smoothing` of each row spread evenly over all K classes."""
    return targets * (1 - smoothing) + smoothing / targets.shape[1]


def focal_loss(logits: Tensor, targets: Tensor, *, weights: Tensor, alpha: float, gamma: float) -> Tensor:
    """- alpha sum_k w_k q_k (1 - p_k)^gamma log p_k, mean over the batch (Lin et al. 2017, for several classes and soft targets).

    `logits` `[B, K]`, `targets` q `[B, K]`, class `weights` w `[K]`. alpha scales all classes alike and does not balance them.
    """
    log_p = logits.float().log_softmax(-1)
    terms = -alpha * weights * targets * (1 - log_p.exp()).clamp_min(0) ** gamma * log_p
    return terms.sum(-1).mean()


def mixup(images: list[Tensor], present: Tensor, targets: list[Tensor], *, alpha: float) -> tuple[list[Tensor], list[Tensor]]:
    """Mix each quadruple with another one, its images and targets with the same partner and weight (Zhang et al. 2018).

    `present` `[B, M]` tells which images exist. Two quadruples are mixed only if they have the same magnifications, because an
    absent image cannot be mixed.
    """
    weight = torch.distributions.Beta(alpha, alpha).sample().to(present.device)
    partner = torch.randperm(len(present), device=present.device)
    weights = torch.where((present == present[partner]).all(1), weight, torch.ones_like(weight))

    def mix(x: Tensor) -> Tensor:
        w = weights.view(-1, *[1] * (x.ndim - 1)).to(x.dtype)
        return w * x + (1 - w) * x[partner]

    return [mix(x) for x in images], [mix(t) for t in targets]
