"""Loss terms. Points are `[B, 15, 2]` (x, y) in the chosen unit (pixels at 224, or fractions); a term is a mean in that unit.

Every term is called with the same keywords (see LandmarkModule.loss) and takes those that it needs.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from quintet.landmarks.data.anatomy import DISTANCES, MIDLINE, MIDLINE_WEIGHTS, PAIRS, PIXELS
from quintet.registry import Registry

LOSSES = Registry("loss")
MIN_AXIS = 1e-3  # a shorter axis has no direction


@LOSSES.register("wing")
def wing(predicted: Tensor, true: Tensor, *, omega: float, epsilon: float, **_: Any) -> Tensor:
    """Wing loss per coordinate, mean (Feng et al. 2018, arXiv 1711.06753, eq. 5): `omega ln(1 + |d| / epsilon)` for |d| < omega,
    else `|d| - C`. omega and epsilon are in the unit of the points: with fractions, |d| never exceeds omega = 10."""
    error = (predicted - true).abs()
    constant = omega - omega * math.log(1 + omega / epsilon)
    return torch.where(error < omega, omega * torch.log1p(error / epsilon), error - constant).mean()


@LOSSES.register("symmetry")
def symmetry(predicted: Tensor, true: Tensor, *, frame: Literal["patient", "image"], **_: Any) -> Tensor:
    """Distance between one point of a mirror pair and the mirror image of the other, mean over pairs; on the prediction alone.

    The mirror axis is, in the patient's frame, the line through landmarks 0 and 1, so that the term does not change when the
    patient is turned; in the image's frame, as in the reference, the vertical line at the weighted mean x of the midline. Both
    directions give the same distance (mirroring is an isometry), so one is computed.
    """
    left, right = (predicted[:, list(side)] for side in zip(*PAIRS, strict=True))
    if frame == "image":
        weights = predicted.new_tensor(MIDLINE_WEIGHTS)
        axis = (predicted[:, MIDLINE, 0] * weights).sum(1, keepdim=True) / weights.sum()
        return _length(torch.stack([left[..., 0] + right[..., 0] - 2 * axis, left[..., 1] - right[..., 1]], -1)).mean()
    along = _axis(predicted)
    across = torch.stack([along[..., 1], -along[..., 0]], -1)
    outwards = ((left + right - 2 * predicted[:, :1]) * across).sum(-1)
    return _length(torch.stack([outwards, ((left - right) * along).sum(-1)], -1)).mean()


@LOSSES.register("distance")
def distance(predicted: Tensor, true: Tensor, **_: Any) -> Tensor:
    """Absolute difference of predicted and true distance between the two landmarks of a pair, mean over five pairs. Distances are
    the same in every frame."""
    one, other = (list(side) for side in zip(*DISTANCES, strict=True))
    return (_length(predicted[:, one] - predicted[:, other]) - _length(true[:, one] - true[:, other])).abs().mean()


@LOSSES.register("jensen_shannon")
def jensen_shannon(predicted: Tensor, true: Tensor, *, heatmaps: Tensor, side: float, sigma_px: float, **_: Any) -> Tensor:
    """Jensen-Shannon divergence (0 to ln 2, no unit) between each heatmap `[B, 15, h, w]` and a Gaussian at the true landmark,
    mean (DSNT, Nibali et al. 2018, arXiv 1801.07372). `sigma_px`: SD of the Gaussian, pixels at 224; `side`: the image's side in
    the unit of the points."""
    rows, columns = (
        (-0.5 * ((cell_centres(heatmaps, axis) - true[..., k, None] / side) * PIXELS / sigma_px) ** 2).softmax(-1)
        for k, axis in ((1, -2), (0, -1))  # softmax: sums to 1 even for a landmark that augmentation moved out of the image
    )
    gaussian = rows[..., :, None] * columns[..., None, :]
    mean = torch.log((heatmaps + gaussian) / 2 + 1e-12)
    divergences = [(p * (torch.log(p + 1e-12) - mean)).sum((-2, -1)) for p in (heatmaps, gaussian)]
    return torch.stack(divergences).mean()


def cell_centres(heatmaps: Tensor, axis: int) -> Tensor:
    """Positions of the cells of heatmaps `[..., h, w]` along an axis, as fractions: (i + 1/2) / n."""
    count = heatmaps.shape[axis]
    return (torch.arange(count, device=heatmaps.device, dtype=heatmaps.dtype) + 0.5) / count


def _axis(points: Tensor) -> Tensor:
    """Unit vectors `[B, 1, 2]` from landmark 0 to 1; downwards, without a gradient, if the two coincide."""
    axis = points[:, 1:2] - points[:, :1]
    length = _length(axis)[..., None]
    return torch.where(length > MIN_AXIS, axis / length.clamp_min(MIN_AXIS), axis.new_tensor([0.0, 1.0]))


def _length(vector: Tensor) -> Tensor:
    """Euclidean length with a finite gradient at zero."""
    return (vector.square().sum(-1) + 1e-12).sqrt()
