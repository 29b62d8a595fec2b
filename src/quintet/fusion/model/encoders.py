"""Encoders of the modalities: volumes `[B, M, S, S, S]` (the channels of I images, one after the other), V vectors `[B, W]` (the
last one: clinical features) and which of the K = I + V modalities are present `[B, K]` -> features of each modality `[B, F_k]`
-> tokens `[B, K, D]`."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from monai.networks.nets import ResNet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

ENCODERS = {
    "small": ("basic", [1, 1, 1, 1]),
    "resnet10": ("basic", [1, 1, 1, 1]),
    "resnet18": ("basic", [2, 2, 2, 2]),
    "resnet34": ("basic", [3, 4, 6, 3]),
    "resnet50": ("bottleneck", [3, 4, 6, 3]),
}
MOMENTUM = 0.05  # of running statistics


class RunningNorm(nn.Module):
    """Normalise channels by the running mean and SD of the training data, then scale and shift; `[B, C, ...]` -> the same shape.

    This is batch norm in evaluation mode, used in training too: the statistics have no gradient, so that the patients of a batch
    do not influence each other and a batch of one works (missing modalities make such batches). Group norm, the usual solution,
    removes differences in magnitude between patients, and little else survives global average pooling
    (docs/fusion.md has the measurements).
    """

    mean: Tensor
    square: Tensor
    seen: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("square", torch.ones(channels))
        self.register_buffer("seen", torch.zeros(()))  # batches
        self.updates = True
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.updates:
            self._update(x.detach().float().transpose(0, 1).flatten(1))
        shape = (1, -1, *[1] * (x.dim() - 2))
        scale = self.weight / (self.square - self.mean.square()).clamp_min(1e-5).sqrt()
        return x * scale.view(shape) + (self.bias - self.mean * scale).view(shape)

    @torch.no_grad()
    def _update(self, values: Tensor) -> None:
        """`[C, N]`; the average over all batches at first. Not in place: the backward pass needs the old tensors."""
        self.seen = self.seen + 1
        weight = torch.clamp(1 / self.seen, min=MOMENTUM)
        self.mean = torch.lerp(self.mean, values.mean(1), weight)
        self.square = torch.lerp(self.square, values.square().mean(1), weight)


class ImageEncoder(nn.Module):
    """3D ResNet (He et al. 2016) with running norm; `[B, C, S, S, S]` -> `[B, F]`. `small`: one block per stage, without the
    pooling after the first convolution."""

    def __init__(self, encoder: str, width: int, channels: int = 1) -> None:
        super().__init__()
        block, layers = ENCODERS[encoder]
        planes = [width * 2**i for i in range(4)]
        small = encoder == "small"
        self.net = ResNet(
            block,
            layers,
            planes,
            spatial_dims=3,
            n_input_channels=channels,
            conv1_t_size=3 if small else 7,
            conv1_t_stride=2,
            no_max_pool=small,
            bias_downsample=False,
            feed_forward=False,
        )
        _use_running_norm(self.net)
        # With few channels 1.5 times as fast on a CPU (benchmarks/fusion.py). The volumes do not decide: most have one channel.
        self.net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.features = planes[-1] * (4 if block == "bottleneck" else 1)

    def forward(self, volumes: Tensor) -> Tensor:
        return self.net(volumes).flatten(1)


@contextmanager
def _no_updates(module: nn.Module) -> Iterator[None]:
    """Gradient checkpointing repeats the forward pass during the backward pass, but statistics must count each batch once."""
    norms = [m for m in module.modules() if isinstance(m, RunningNorm)]
    for norm in norms:
        norm.updates = False
    yield
    for norm in norms:
        norm.updates = True


def _use_running_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm3d):
            setattr(module, name, RunningNorm(child.num_features))
        else:
            _use_running_norm(child)


def mlp(sizes: Sequence[int], dropout: float, *, last: bool) -> nn.Sequential:
    """Linear layers, each followed by GELU and dropout; with `last`, the last one is not."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(a, b))
        if not (last and i == len(sizes) - 2):
            layers += [nn.GELU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


class Encoders(nn.Module):
    """One encoder and one projection to `hidden` per modality: `images` have the arguments of their ImageEncoder, `vectors` the
    widths of their layers, the first of which is that of the table. Features and tokens of missing modalities are zeros."""

    def __init__(
        self,
        *,
        images: Sequence[dict[str, Any]],
        vectors: Sequence[Sequence[int]],
        hidden: int,
        dropout: float,
        recompute: bool,
    ) -> None:
        super().__init__()
        image_encoders = [ImageEncoder(**values) for values in images]
        self.images = nn.ModuleList(image_encoders)
        self.channels = [values.get("channels", 1) for values in images]
        # a modality exists even without any usable column, but then no patient has it
        self.vectors = nn.ModuleList([mlp([max(size, 1), *units], dropout, last=False) for size, *units in vectors])
        self.widths = [net.features for net in image_encoders] + [units[-1] for units in vectors]
        self.standard = nn.ModuleList([RunningNorm(width) for width in self.widths])
        self.project = nn.ModuleList([nn.Linear(width, hidden) for width in self.widths])
        self.recompute = recompute

    def features(self, volumes: Tensor, vectors: Sequence[Tensor], present: Tensor) -> list[Tensor]:
        """Standardised features `[B, F_k]` of each modality."""
        features, images = [], volumes.split(self.channels, 1)
        for k, standard in enumerate(self.standard):
            rows = present[:, k].nonzero()[:, 0]
            out = torch.zeros(len(present), self.widths[k], device=present.device)
            if len(rows):
                v = k - len(self.images)
                x = self._image(k, images[k][rows]) if v < 0 else self._vector(v, vectors[v][rows])
                out = out.index_copy(0, rows, standard(x.float()))
            features.append(out)
        return features

    def _image(self, k: int, volumes: Tensor) -> Tensor:
        if not (self.recompute and self.training and torch.is_grad_enabled()):
            return self.images[k](volumes)
        return checkpoint(
            self.images[k], volumes, use_reentrant=False, context_fn=lambda: (nullcontext(), _no_updates(self.images[k]))
        )

    def _vector(self, v: int, values: Tensor) -> Tensor:
        return self.vectors[v](values if values.shape[1] else values.new_zeros(len(values), 1))

    def tokens(self, features: Sequence[Tensor], present: Tensor) -> Tensor:
        """`[B, K, D]`."""
        return torch.stack([layer(x) for layer, x in zip(self.project, features, strict=True)], 1).float() * present[..., None]


class Reduction(nn.Module):
    """The principal components of each modality's tokens, with mean 0 and variance 1: `[B, K, H]` -> `[B, K, D]`, and zero where
    a modality is missing. A late-fusion encoder puts most of the variance into the direction that its prediction needs."""

    mean: Tensor
    axes: Tensor

    def __init__(self, count: int, hidden: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("mean", torch.zeros(count, hidden))
        self.register_buffer("axes", torch.zeros(count, hidden, size))

    def fit(self, tokens: Tensor, present: Tensor) -> None:
        """From the tokens of training patients; a modality that fewer than two of them have stays zero."""
        for k in range(tokens.shape[1]):
            x = tokens[present[:, k], k].double()
            if len(x) < 2:
                continue
            _, scale, axes = torch.linalg.svd(x - x.mean(0), full_matrices=False)
            used = scale[: self.size] > 1e-6 * scale[0].clamp_min(1e-12)
            axes, scale = axes[: self.size][used], scale[: self.size][used] / math.sqrt(len(x))
            # the sign of a component is arbitrary: the largest weight is positive
            sign = axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
            self.mean[k] = x.mean(0)
            self.axes[k, :, : len(axes)] = (axes * sign / scale[:, None]).T

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        return torch.einsum("bkh,khd->bkd", tokens - self.mean, self.axes) * present[..., None]
