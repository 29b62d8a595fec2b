"""Networks: an encoder (feature pyramid), optional coordinate attention, and a head (regression or heatmap).

Every network maps images `[B, 1, H, W]` in [0, 1] to a `Located`.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintet.backbones import ResNet18
from quintet.landmarks.data.anatomy import LANDMARKS
from quintet.landmarks.model.losses import cell_centres
from quintet.registry import Registry

ENCODERS = Registry("arch")
HEADS = Registry("head")


class Located(NamedTuple):
    """Where a network sees the landmarks. `spread` is the standard deviation of the heatmap around its mean, as a fraction of the
    image; for a regression it is zero, and there are no heatmaps."""

    points: Tensor  # [B, 15, 2], fractions
    spread: Tensor  # [B, 15]
    heatmaps: Tensor | None  # [B, 15, h, w], each sums to 1


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


ENCODERS.register("resnet18")(ResNet18)


@ENCODERS.register("unet")
class UNetEncoder(nn.Module):
    """The contracting path of a small U-Net (Ronneberger et al. 2015) after a stride-2 convolution; features at
    strides 4, 8, 16, 32. (Maps finer than stride 4 take twice the time and gain nothing: soft-argmax has sub-cell resolution.)"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channels = [width, 2 * width, 4 * width, 4 * width]
        self.stem = conv(1, width, stride=2)
        inputs = [width, *self.channels[:-1]]
        self.levels = nn.ModuleList(
            nn.Sequential(conv(i, o, stride=2), conv(o, o)) for i, o in zip(inputs, self.channels, strict=True)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.stem((images - 0.5) / 0.25)
        features = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features


class CoordinateAttention(nn.Module):
    """Coordinate attention (Hou et al. 2021, arXiv 2103.02907): channel weights along rows times those along columns."""

    def __init__(self, channels: int, reduction: int = 32) -> None:
        super().__init__()
        hidden = max(8, channels // reduction)
        self.shared = nn.Sequential(nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.Hardswish())
        self.rows = nn.Conv2d(hidden, channels, 1)
        self.columns = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        pooled = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)], dim=2)  # [B, C, H + W, 1]
        rows, columns = self.shared(pooled).split([height, width], dim=2)
        return x * self.rows(rows).sigmoid() * self.columns(columns.transpose(2, 3)).sigmoid()


@HEADS.register("regression")
class RegressionHead(nn.Module):
    """The reference's head on globally pooled features: three linear layers with decreasing dropout, and a sigmoid."""

    def __init__(self, channels: list[int], dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(channels[-1], 512),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout / 2),
            nn.Linear(512, 256),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout / 4),
            nn.Linear(256, 2 * LANDMARKS),
        )

    def forward(self, features: list[Tensor]) -> Located:
        points = self.layers(features[-1].mean((2, 3))).float().sigmoid().view(-1, LANDMARKS, 2)
        return Located(points, points.new_zeros(points.shape[:2]), None)


@HEADS.register("heatmap")
class HeatmapHead(nn.Module):
    """An expanding path back to stride 4 and a soft-argmax over each landmark's map."""

    def __init__(self, channels: list[int], dropout: float) -> None:
        super().__init__()
        levels = list(zip(channels[:0:-1], channels[-2::-1], strict=True))  # (from below, skip connection), coarse to fine
        self.up = nn.ModuleList(nn.Sequential(conv(below + skip, skip), conv(skip, skip)) for below, skip in levels)
        self.maps = nn.Conv2d(channels[0], LANDMARKS, 1)

    def forward(self, features: list[Tensor]) -> Located:
        x = features[-1]
        for level, skip in zip(self.up, features[-2::-1], strict=True):
            x = level(torch.cat([F.interpolate(x, size=skip.shape[-2:], mode="bilinear"), skip], dim=1))
        return soft_argmax(self.maps(x).float())


def soft_argmax(maps: Tensor) -> Located:
    """Mean position and standard deviation of softmax(maps) (DSNT, Nibali et al. 2018, arXiv 1801.07372): `[B, K, h, w]` ->
    points `[B, K, 2]` and spread `[B, K]`, as fractions."""
    return located(maps.flatten(2).softmax(-1).view_as(maps))


def located(heatmaps: Tensor) -> Located:
    """The mean position and standard deviation of heatmaps `[B, K, h, w]` that sum to 1."""
    xs, ys = (cell_centres(heatmaps, axis) for axis in (-1, -2))
    by_column, by_row = heatmaps.sum(2), heatmaps.sum(3)
    x, y = by_column @ xs, by_row @ ys
    variance = by_column @ xs.square() - x.square() + by_row @ ys.square() - y.square()
    return Located(torch.stack([x, y], -1), variance.clamp_min(1e-12).sqrt(), heatmaps)


class LandmarkNet(nn.Module):
    """Backbone (encoder), optional attention, and head (regression layers or decoder): the parts that the phases train."""

    def __init__(self, *, arch: str, head: str, attention: bool, width: int, dropout: float) -> None:
        super().__init__()
        self.backbone: Any = ENCODERS[arch](width)
        channels: list[int] = self.backbone.channels
        self.attention = CoordinateAttention(channels[-1]) if attention else nn.Identity()
        self.head = HEADS[head](channels, dropout)

    def forward(self, images: Tensor) -> Located:
        features = self.backbone(images)
        return self.head([*features[:-1], self.attention(features[-1])])
