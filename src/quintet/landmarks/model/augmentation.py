"""Augmentation of whole batches on the device; landmarks are transformed too, and a flip exchanges the paired ones.

One affine grid per batch: flip, rotation, scale and shift cost a single resampling. (benchmarks/landmarks.py
compares this with kornia, which needs several passes, and with albumentations, which augments one image at a time.)
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from quintet.landmarks.data.anatomy import SWAPPED
from quintet.params.landmarks import LandmarksAugment


def augment(images: Tensor, points: Tensor, params: LandmarksAugment) -> tuple[Tensor, Tensor]:
    """Augment images `[B, 1, S, S]` in [0, 1] and points `[B, 15, 2]` (fractions), using torch's global generator."""
    count = len(images)
    draws = torch.rand(7, count, device=images.device) * 2 - 1  # uniform in [-1, 1)
    flip = draws[0] < 2 * params.flip - 1
    angle = draws[1] * math.radians(params.rotation_deg)
    scale = 1 + draws[2] * params.scale
    shift = draws[3:5].T * params.shift
    images, points = transform(images, points, flip=flip, angle=angle, scale=scale, shift=shift)
    contrast = (1 + draws[5] * params.contrast).view(-1, 1, 1, 1)
    brightness = (draws[6] * params.brightness).view(-1, 1, 1, 1)
    mean = images.mean((1, 2, 3), keepdim=True)
    return ((images - mean) * contrast + mean * (1 + brightness)).clamp_(0, 1), points


def transform(
    images: Tensor, points: Tensor, *, flip: Tensor, angle: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Flip (bool `[B]`), then about the centre rotate by angle (radians, clockwise) and scale, then shift (`[B, 2]`, fractions).

    Pixels outside the image become 0. Points use the same matrix: `p' = s R F (p - 1/2) + 1/2 + shift`.
    """
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)  # [B, 2, 2]
    sign = torch.where(flip, -1.0, 1.0)
    forward = rows * torch.stack([sign, torch.ones_like(sign)], -1)[:, None, :]
    inverse = torch.linalg.inv(forward)
    # affine_grid maps output to input positions in [-1, 1], where a shift by the image's whole side is 2
    theta = torch.cat([inverse, inverse @ (-2 * shift)[..., None]], dim=-1)
    grid = F.affine_grid(theta.to(images.dtype), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, align_corners=False)
    swapped = torch.where(flip[:, None, None], points[:, torch.as_tensor(SWAPPED, device=points.device)], points)
    return moved, (swapped - 0.5) @ forward.transpose(1, 2) + 0.5 + shift[:, None, :]


def mirror_images(images: Tensor) -> Tensor:
    """The mirror images, `[..., H, W]`; `anatomy.mirror` gives their landmarks."""
    return images.flip(-1)
