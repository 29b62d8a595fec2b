"""Loss terms. Points are `[B, 15, 2]` (x, y) in the chosen unit (pixels at 224, or fractions); a term is a mean in that unit."""

import math

import torch
from torch import Tensor

from quintet.landmarks.data.anatomy import DISTANCES, MIDLINE, MIDLINE_WEIGHTS, PAIRS
from quintet.registry import Registry

LOSSES = Registry("loss")


@LOSSES.register("wing")
def wing(predicted: Tensor, true: Tensor, *, omega: float, epsilon: float) -> Tensor:
    """Wing loss per coordinate, mean (Feng et al. 2018, arXiv 1711.06753, eq. 5): `omega ln(1 + |d| / epsilon)` for |d| < omega,
    else `|d| - C`. omega and epsilon are in the unit of the points: with fractions, |d| never exceeds omega = 10."""
    error = (predicted - true).abs()
    constant = omega - omega * math.log(1 + omega / epsilon)
    return torch.where(error < omega, omega * torch.log1p(error / epsilon), error - constant).mean()


@LOSSES.register("symmetry")
def symmetry(predicted: Tensor, true: Tensor, **_: float) -> Tensor:
    """Distance between one point of a mirror pair and the mirror image of the other across the vertical axis, mean over pairs.

    The axis is the weighted mean x of the midline. Both directions give the same distance (mirroring is an isometry), so one
    is computed. It depends on the prediction only.
    """
    weights = predicted.new_tensor(MIDLINE_WEIGHTS)
    axis = (predicted[:, MIDLINE, 0] * weights).sum(1, keepdim=True) / weights.sum()
    left, right = (predicted[:, list(side)] for side in zip(*PAIRS, strict=True))
    dx = left[..., 0] + right[..., 0] - 2 * axis
    return _length(torch.stack([dx, left[..., 1] - right[..., 1]], -1)).mean()


@LOSSES.register("distance")
def distance(predicted: Tensor, true: Tensor, **_: float) -> Tensor:
    """Absolute difference of predicted and true distance between the two landmarks of a pair, mean over five pairs."""
    one, other = (list(side) for side in zip(*DISTANCES, strict=True))
    return (_length(predicted[:, one] - predicted[:, other]) - _length(true[:, one] - true[:, other])).abs().mean()


def _length(vector: Tensor) -> Tensor:
    """Euclidean length with a finite gradient at zero."""
    return (vector.square().sum(-1) + 1e-12).sqrt()
