"""Focal loss on soft targets, and mixup of whole quadruples."""

import torch
from torch import Tensor


def soft_targets(targets: Tensor, smoothing: float) -> Tensor:
    """Shares `[B, K]` -> the same with `smoothing` of each row spread over all K."""
    return targets * (1 - smoothing) + smoothing / targets.shape[1]


def focal_loss(logits: Tensor, targets: Tensor, *, weights: Tensor, alpha: float, gamma: float) -> Tensor:
    """- alpha sum_k w_k q_k (1 - p_k)^gamma log p_k, mean over the batch (Lin et al. 2017, for several classes and soft targets).

    `logits`, `targets` q `[B, K]`, `weights` w `[K]`. alpha scales all classes alike; their balance is `weights`' matter.
    """
    log_p = logits.float().log_softmax(-1)
    each = -alpha * weights * targets * (1 - log_p.exp()).clamp_min(0) ** gamma * log_p
    return each.sum(-1).mean()


def mixup(images: list[Tensor], present: Tensor, targets: list[Tensor], *, alpha: float) -> tuple[list[Tensor], list[Tensor]]:
    """Each quadruple with another one: the same partner and share for its four images and its targets (Zhang et al. 2018).

    Two quadruples mix only if they have the same magnifications: there is nothing to mix an absent image with.
    """
    share = torch.distributions.Beta(alpha, alpha).sample().to(present.device)
    partner = torch.randperm(len(present), device=present.device)
    own = torch.where((present == present[partner]).all(1), share, torch.ones_like(share))

    def mixed(x: Tensor) -> Tensor:
        weight = own.view(-1, *[1] * (x.ndim - 1)).to(x.dtype)
        return weight * x + (1 - weight) * x[partner]

    return [mixed(x) for x in images], [mixed(t) for t in targets]
