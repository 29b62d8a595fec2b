"""One encoder and three kinds of decoders, made of MONAI's DynUNet blocks; `shared` is exactly nnU-Net's plain 2D U-Net."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetUpBlock
from torch import Tensor, nn

from quintet.registry import Registry

ARCHITECTURES = Registry("arch")
HEADS = 8
MIN_SIZE = 4  # pixels per side at the bottom
MAX_FEATURES = 512


@dataclass(frozen=True)
class Plan:
    """Stages from full resolution down: strides and kernel sizes (rows, columns), and channels."""

    strides: list[tuple[int, int]]
    kernels: list[tuple[int, int]]
    features: list[int]


def plan_stages(patch: list[int], spacing_mm: tuple[float, float], features: int) -> Plan:
    """nnU-Net's rules: halve an axis while at least 8 pixels remain (12 if it is the only axis left) and its spacing is below
    twice that of the finest axis; kernel size 3 where spacings are within a factor of 2, else 1; double the channels up to 512.

    72 x 56 at equal spacing gives 4 stages.
    """
    size, spacing = list(patch), list(spacing_mm)
    strides, kernels = [(1, 1)], [_kernel(spacing)]
    while True:
        valid = [a for a in (0, 1) if size[a] >= 2 * MIN_SIZE]
        valid = [a for a in valid if spacing[a] / min(spacing[b] for b in valid) < 2]
        if not valid or (len(valid) == 1 and size[valid[0]] < 3 * MIN_SIZE):
            break
        step = (2 if 0 in valid else 1, 2 if 1 in valid else 1)
        size = [math.ceil(s / k) for s, k in zip(size, step, strict=True)]
        spacing = [s * k for s, k in zip(spacing, step, strict=True)]
        strides.append(step)
        kernels.append(_kernel(spacing))
    return Plan(strides, kernels, [min(features * 2**i, MAX_FEATURES) for i in range(len(strides))])


def _kernel(spacing: list[float]) -> tuple[int, int]:
    finest = min(spacing)
    return (3 if spacing[0] / finest < 2 else 1, 3 if spacing[1] / finest < 2 else 1)


def divisor(plan: Plan) -> tuple[int, int]:
    """Rows and columns of an input must be multiples of these."""
    return math.prod(s[0] for s in plan.strides), math.prod(s[1] for s in plan.strides)


BLOCK: dict[str, Any] = {
    "norm_name": ("INSTANCE", {"affine": True}),
    "act_name": ("leakyrelu", {"inplace": True, "negative_slope": 0.01}),
}


class Encoder(nn.Module):
    """`[B, C, H, W]` -> features of every stage, finest first."""

    def __init__(self, channels: int, plan: Plan) -> None:
        super().__init__()
        incoming = [channels, *plan.features[:-1]]
        self.stages = nn.ModuleList(
            UnetBasicBlock(2, i, o, kernel_size=k, stride=s, **BLOCK)
            for i, o, k, s in zip(incoming, plan.features, plan.kernels, plan.strides, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class Decoder(nn.Module):
    """The expanding path, coarsest level first: each level upsamples and concatenates the skip connection of its resolution."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        levels = range(len(plan.features) - 1, 0, -1)
        self.levels = nn.ModuleList(
            UnetUpBlock(
                2,
                plan.features[i],
                plan.features[i - 1],
                kernel_size=plan.kernels[i - 1],
                stride=1,
                upsample_kernel_size=plan.strides[i],
                **BLOCK,
            )
            for i in levels
        )

    def forward(self, level: int, x: Tensor, skip: Tensor) -> Tensor:
        """One level up; the network loops over the levels, because two decoders may attend to each other between them."""
        return self.levels[level](x, skip)


class Heads(nn.Module):
    """1 x 1 convolutions to logits at full resolution and, with deep supervision, at every coarser level but the coarsest."""

    def __init__(self, plan: Plan, out: int, *, deep_supervision: bool) -> None:
        super().__init__()
        count = max(1, len(plan.features) - 2) if deep_supervision else 1
        self.convs = nn.ModuleList(nn.Conv2d(plan.features[i], out, 1) for i in range(count))

    def forward(self, decoded: list[Tensor], *, all_scales: bool) -> list[Tensor]:
        """`decoded` coarsest first -> logits, full resolution first."""
        pairs = list(zip(self.convs, decoded[::-1], strict=False))
        return [conv(x) for conv, x in (pairs if all_scales else pairs[:1])]


class CrossAttention(nn.Module):
    """One multi-head attention used in both directions, each with a residual: left attends to right and right to left.

    At most `tokens` tokens per hemisphere: larger maps are averaged over squares first and the result is interpolated back, so
    that memory grows with the number of pixels and not with its square. MultiheadAttention without returned weights is PyTorch's
    fused scaled-dot-product attention (Vaswani et al. 2017, arXiv 1706.03762).
    """

    def __init__(self, channels: int, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.norm = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, HEADS, batch_first=True)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        count, size = left.shape[0], left.shape[-2:]  # slices and not chunk, which an export fixes to one batch size
        square = self.pool_size(*size)
        tokens = [F.avg_pool2d(x, square, ceil_mode=True) if square > 1 else x for x in (left, right)]
        grid = tokens[0].shape[-2:]
        # both directions in one call: a batch of [left, right] attends to a batch of [right, left]
        query = self.norm(torch.cat(tokens).flatten(2).transpose(1, 2))  # [2B, tokens, C]
        key = torch.cat([query[count:], query[:count]])
        attended, _ = self.attention(query, key, key, need_weights=False)
        attended = attended.transpose(1, 2).unflatten(2, grid)
        if square > 1:
            attended = F.interpolate(attended, size=size, mode="bilinear", align_corners=False)
        return left + attended[:count], right + attended[count:]

    def pool_size(self, height: int, width: int) -> int:
        """Side of the squares that are averaged: the smallest one that leaves at most `tokens` tokens."""
        side = 1
        while math.ceil(height / side) * math.ceil(width / side) > self.tokens:
            side += 1
        return side


class TerritoryNet(nn.Module):
    """`[B, C, H, W]` -> logits `[B, 2, H, W]` (left, right) at full resolution first, then, in training, at coarser scales.

    H and W must be multiples of `divisor(plan)`.
    """

    def __init__(
        self, channels: int, plan: Plan, *, arch: str, separate_at: str, attention_tokens: int, deep_supervision: bool
    ) -> None:
        super().__init__()
        self.encoder = Encoder(channels, plan)
        decoders, heads, attends = ARCHITECTURES[arch](separate_at)
        self.decoders = nn.ModuleList(Decoder(plan) for _ in range(decoders))
        self.heads = nn.ModuleList(Heads(plan, 2 // heads, deep_supervision=deep_supervision) for _ in range(heads))
        self.exchange = CrossAttention(plan.features[-2], attention_tokens) if attends else None
        _use_fast_norm(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        skips = self.encoder(images)
        paths: list[list[Tensor]] = [[skips[-1]] for _ in self.decoders]
        for level, skip in enumerate(skips[-2::-1]):
            for decoder, path in zip(self.decoders, paths, strict=True):
                path.append(decoder(level, path[-1], skip))
            if level == 0 and self.exchange is not None:
                for path, x in zip(paths, self.exchange(paths[0][-1], paths[1][-1]), strict=True):
                    path[-1] = x
        if len(paths) < len(self.heads):
            paths = paths * len(self.heads)
        scales = [head(path[1:], all_scales=self.training) for head, path in zip(self.heads, paths, strict=True)]
        return [torch.cat(logits, dim=1) for logits in zip(*scales, strict=True)]


def build_net(build: dict[str, Any]) -> TerritoryNet:
    """The network of a saved model's `build` values."""
    plan = plan_stages(build["patch"], tuple(build["spacing_mm"][1:]), build["features"])
    names = ("arch", "separate_at", "attention_tokens", "deep_supervision")
    return TerritoryNet(len(build["channels"]), plan, **{name: build[name] for name in names})


class InstanceNorm(nn.GroupNorm):
    """Instance norm as group norm with one channel per group, which is faster on a CPU in channels-last memory: a training step
    takes 83 ms instead of 97 (8 features, one thread). In bfloat16 it takes 241 instead of 57, so not there."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.bfloat16:
            return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)
        return super().forward(x)


def _use_fast_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.InstanceNorm2d):
            setattr(module, name, InstanceNorm(child.num_features, child.num_features, eps=child.eps))
        else:
            _use_fast_norm(child)


@ARCHITECTURES.register("shared")
def shared(separate_at: str) -> tuple[int, int, bool]:
    """(decoders, heads, cross-attention): one decoder, one head of 2 channels; `separate_at` does not apply."""
    return 1, 1, False


@ARCHITECTURES.register("separate")
def separate(separate_at: str) -> tuple[int, int, bool]:
    """A decoder and a head per hemisphere; separate_at=head is the reference's sketch, two heads on one decoder."""
    return (1, 2, False) if separate_at == "head" else (2, 2, False)


@ARCHITECTURES.register("crossattention")
def crossattention(separate_at: str) -> tuple[int, int, bool]:
    """`separate`, whose decoders attend to each other at their deepest level."""
    return 2, 2, True
