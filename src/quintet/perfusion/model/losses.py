"""The base loss and the terms that may be added to it.

Logits, probabilities p and binary targets t are `[B, 2, H, W]`; channel 0 is left, 1 right. Each function gives one value per
image `[B]`; a mean is over the pixels of an image.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from quintet.registry import Registry

LOSSES = Registry("loss")
SMOOTH = 1e-5
SCALES = (1.0, 0.5, 0.25)


def base(logits: Tensor, t: Tensor) -> Tensor:
    """`0.5 BCE(left) + 0.5 BCE(right)` plus `1 - soft Dice` over both channels together; an empty image that is
    predicted empty costs 0."""
    p = logits.sigmoid()
    bce = F.binary_cross_entropy_with_logits(logits, t, reduction="none").mean((1, 2, 3))
    dice = (2 * (p * t).sum((1, 2, 3)) + SMOOTH) / (p.sum((1, 2, 3)) + t.sum((1, 2, 3)) + SMOOTH)
    return bce + 1 - dice


@LOSSES.register("spatial")
def spatial(p: Tensor, t: Tensor) -> Tensor:
    """The sum of overlap `mean(p_l p_r [t_l + t_r <= 1])`, coverage `MSE(clamp(p_l + p_r, 0, 1), clamp(t_l + t_r, 0, 1))`, and
    exclusivity `mean(p_r t_l (1 - t_r)) + mean(p_l t_r (1 - t_l))`."""
    (p_l, p_r), (t_l, t_r) = p.unbind(1), t.unbind(1)
    overlap = p_l * p_r * (t_l + t_r <= 1)
    coverage = (_covered(p) - _covered(t)).square()
    exclusivity = p_r * t_l * (1 - t_r) + p_l * t_r * (1 - t_l)
    return (overlap + coverage + exclusivity).mean((1, 2))


@LOSSES.register("complementary")
def complementary(p: Tensor, t: Tensor) -> Tensor:
    """`mean(p_l p_r (1 - t_l)(1 - t_r))` plus |predicted - true covered fraction| of the image."""
    (p_l, p_r), (t_l, t_r) = p.unbind(1), t.unbind(1)
    outside = (p_l * p_r * (1 - t_l) * (1 - t_r)).mean((1, 2))
    return outside + (_covered(p).mean((1, 2)) - _covered(t).mean((1, 2))).abs()


@LOSSES.register("multiscale")
def multiscale(p: Tensor, t: Tensor) -> Tensor:
    """`spatial` averaged over the scales 1, 0.5 and 0.25 (bilinear for p; nearest for t, which plain "nearest" displaces)."""
    terms = [spatial(p, t)]
    for scale in SCALES[1:]:
        small = F.interpolate(p, scale_factor=scale, mode="bilinear", align_corners=False)
        terms.append(spatial(small, F.interpolate(t, size=small.shape[-2:], mode="nearest-exact")))
    return torch.stack(terms).mean(0)


@LOSSES.register("adaptive")
def adaptive(p: Tensor, t: Tensor) -> Tensor:
    """`spatial`; only its weight adapts (`weight_at`)."""
    return spatial(p, t)


def weight_at(weight: float | Sequence[float], progress: float) -> float:
    """A constant weight, or one that rises linearly from the first to the second value while progress goes from 0 to 1."""
    if isinstance(weight, int | float):
        return float(weight)
    start, end = weight
    return start + (end - start) * progress


def _covered(x: Tensor) -> Tensor:
    return x.sum(1).clamp(0, 1)
