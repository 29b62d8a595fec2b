"""Proximity: a 2D network on groups of three slices, 3D convolutions over (feature, row, column) of all groups, an embedding.

volumes `[B, D, H, W]` in [0, 1]
-> groups of three slices as RGB [B D/3, 3, H, W] -> ResNet-18 without pooling or head [B D/3, F, h, w]
-> the groups as channels [B, D/3, F, h, w] -> three 3D convolutions -> flatten -> fully connected -> embedding, length 1
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from quintet.backbones import ResNet18
from quintet.errors import InputError
from quintet.params.ct import LEGACY_PX

CHANNELS = (64, 32, 16)
Size = tuple[int, int, int]


class Variant(NamedTuple):
    """How the published networks differ. None: the value comes from the parameters."""

    kernels: tuple[Size, Size, Size]
    strides: tuple[Size, Size, Size]
    in_plane: int | None  # rows and columns of the input
    units: tuple[int, int] | None
    embedding: int | None


VARIANTS = {
    # Proximity100x100
    "adaptive": Variant(((3, 3, 3), (3, 1, 1), (3, 1, 1)), ((3, 1, 1),) * 3, None, None, None),
    # Proximity300x300
    "legacy": Variant(((3, 3, 3), (3, 3, 3), (3, 2, 2)), ((3, 1, 1), (3, 1, 1), (3, 2, 2)), LEGACY_PX, (512, 256), 512),
}


class Output(NamedTuple):
    embedding: Tensor  # [B, E], of length 1
    logits: Tensor | None  # [B, F], if the network classifies


class Proximity(nn.Module):
    """Volumes `[B, D, H, W]` in [0, 1] -> embedding and, if the network classifies, logits.

    `findings`: number of outputs of the classification head (0: no head, for training without cross-entropy). `chunk`: number of
    groups that go through the backbone at a time and are recomputed in the backward pass (0: all at once). With chunks the
    backbone's batch norm is frozen: its statistics would be those of a chunk, and recomputation would update them twice.
    """

    def __init__(
        self,
        *,
        arch: str,
        input_size: Sequence[int],
        findings: int,
        width: int,
        units: Sequence[int],
        embedding: int,
        dropout: float,
        chunk: int,
        centre: bool,
    ) -> None:
        super().__init__()
        variant = VARIANTS[arch]
        self.input_size: Size = _input_size(variant, input_size)
        depth, rows, columns = self.input_size
        self.chunk, self.frozen = chunk, chunk > 0
        self.backbone = ResNet18(width)
        sizes = [(depth // 3, *CHANNELS)[i : i + 2] for i in range(3)]
        self.volume = nn.Sequential()
        for (inputs, outputs), kernel, stride in zip(sizes, variant.kernels, variant.strides, strict=True):
            self.volume.extend([nn.Conv3d(inputs, outputs, kernel, stride), nn.BatchNorm3d(outputs), nn.ReLU(inplace=True)])
        shape = (self.backbone.channels[-1], -(-rows // 32), -(-columns // 32))
        flat = CHANNELS[-1]
        axes = zip(*variant.kernels, strict=True), zip(*variant.strides, strict=True)
        for length, kernels, strides in zip(shape, *axes, strict=True):
            flat *= _convolved_length(length, kernels, strides)
        if flat < 1:
            raise InputError(f"input_size={list(self.input_size)} with width={width} leaves nothing after the 3D convolutions")
        units = variant.units or units
        sides = [flat, min(units[0], flat), units[1]]
        self.layers = nn.Sequential(nn.Flatten())
        for inputs, outputs in pairwise(sides):
            self.layers.extend([nn.Linear(inputs, outputs), nn.ReLU(inplace=True), nn.Dropout(dropout)])
        self.embed = nn.Linear(sides[-1], variant.embedding or embedding)
        # With the F1 loss, the easiest early gain is to predict the same for every scan. Centring rules this out, so the network
        # learns differences from the start (like the neck of Luo et al. 2019, arXiv 1903.07071).
        self.centre = nn.BatchNorm1d(self.embed.out_features, affine=False) if centre else None
        # The head reads the vector that retrieval compares, scaled to unit variance per coordinate: similar vectors get similar
        # logits.
        self.head = nn.Linear(self.embed.out_features, findings) if findings else None
        self.train()  # freezes: Lightning keeps the modes that it finds

    def forward(self, volumes: Tensor) -> Output:
        batch, depth = volumes.shape[:2]
        groups = volumes.reshape(batch * depth // 3, 3, *volumes.shape[2:]).contiguous(memory_format=torch.channels_last)
        features = self.encode(groups)
        x = features.reshape(batch, depth // 3, *features.shape[1:]).contiguous()
        x = self.embed(self.layers(self.volume(x))).float()
        if self.centre is not None:
            # a single scan has no batch statistics, so it gets the running ones
            single = len(x) == 1
            x = F.batch_norm(x, self.centre.running_mean, self.centre.running_var) if single else self.centre(x)
        embedding = F.normalize(x, dim=1)
        return Output(embedding, self.head(embedding * embedding.shape[1] ** 0.5) if self.head else None)

    def encode(self, groups: Tensor) -> Tensor:
        """`[G, 3, H, W]` -> `[G, F, h, w]`."""
        if not self.chunk:
            return self._last_features(groups)
        parts = groups.split(self.chunk)
        if not (self.training and torch.is_grad_enabled()):
            return torch.cat([self._last_features(part) for part in parts])
        return torch.cat([checkpoint(self._last_features, part, use_reentrant=False) for part in parts])

    def _last_features(self, groups: Tensor) -> Tensor:
        return self.backbone(groups)[-1]

    def train(self, mode: bool = True) -> "Proximity":
        super().train(mode)
        if self.frozen:
            for module in self.backbone.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self


def _input_size(variant: Variant, size: Sequence[int]) -> Size:
    depth, rows, columns = size
    return (depth, variant.in_plane or rows, variant.in_plane or columns)


def _convolved_length(length: int, kernels: Sequence[int], strides: Sequence[int]) -> int:
    """The length of an axis after convolutions without padding."""
    for kernel, stride in zip(kernels, strides, strict=True):
        length = (length - kernel) // stride + 1
    return max(length, 0)


def network_input(volumes: Tensor, size: Size) -> Tensor:
    """Stored volumes `[B, S, S, S]` uint8 -> resized volumes `[B, D, H, W]` in [0, 1], on the same device."""
    with torch.autocast(volumes.device.type, enabled=False):  # bfloat16 is too coarse for grey levels
        x = volumes.float().div_(255)
        depth, rows, columns = (None if a == b else _resize_matrix(a, b).to(x) for a, b in zip(x.shape[1:], size, strict=True))
        x = x if depth is None else (depth @ x.flatten(2)).unflatten(2, x.shape[2:])
        x = x if columns is None else x @ columns.T
        return x if rows is None else rows @ x


def _resize_matrix(stored: int, resized: int) -> Tensor:
    """`[resized, stored]`: linear interpolation of one axis. When shrinking, the triangular kernel widens to cover every stored
    voxel (antialiasing)."""
    step = stored / resized
    offset = torch.arange(stored) + 0.5 - (torch.arange(resized)[:, None] + 0.5) * step
    weights = (1 - offset.abs() / max(1.0, step)).clamp_min(0)
    return weights / weights.sum(1, keepdim=True)
