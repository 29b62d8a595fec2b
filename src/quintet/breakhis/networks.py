"""MMNet and its controls: one EfficientNet per magnification, attention within and between them, two heads.

Shapes: B quadruples, M magnifications of the configuration, C channels of a feature vector. `present` `[B, M]` says which images
there are; what an absent one holds changes nothing.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import BlockDecoder, efficientnet, round_filters, url_map
from torch import Tensor, nn

from quintet.breakhis.tree import CLASSES, MAGNIFICATIONS, TYPES

MEAN, SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which the published weights expect
HEADS = 8
SCALES = (1, 2, 4)
REDUCTION = 12
# for small images and few cores: three of B0's blocks, a sixteenth of the input behind them, 8 to 24 channels, 160 features
SMALL = ["r1_k3_s22_e1_i64_o32_se0.25", "r1_k3_s22_e4_i32_o80_se0.25", "r1_k3_s22_e4_i80_o160_se0.25"]
COEFFICIENTS = {"small": (0.125, 1.0), "b0": (1.0, 1.0), "b1": (1.0, 1.1)}  # width, depth (Tan and Le 2019)


def build_backbone(name: str, *, size: int, stochastic_depth: float) -> EfficientNet:
    """Without its classifier. `size` fixes the padding at build time."""
    width, depth = COEFFICIENTS[name]
    blocks, common = efficientnet(
        width_coefficient=width, depth_coefficient=depth, image_size=size, drop_connect_rate=stochastic_depth, include_top=False
    )
    if name == "small":  # a short training from scratch: statistics over 10 steps, not over 100
        blocks, common = BlockDecoder.decode(SMALL), common._replace(batch_norm_momentum=0.9)
    net = EfficientNet(blocks, common)
    for module in net.modules():
        if hasattr(module, "_swish"):  # the library's own saves memory and takes twice the time
            module._swish = nn.SiLU()
    return net


def channels_of(backbone: str) -> int:
    """Features of its last map: 1280 times the width, rounded as the library rounds."""
    return int(round_filters(1280, efficientnet(width_coefficient=COEFFICIENTS[backbone][0])[1]))


def weights_url(backbone: str) -> str:
    return str(url_map[f"efficientnet-{backbone}"])


class ChannelAttention(nn.Module):
    """Weights of the channels from their mean and maximum (the channel part of CBAM, Woo et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(8, channels // REDUCTION)
        self.shared = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))

    def forward(self, maps: Tensor) -> Tensor:
        """`[N, C, H, W]` -> the same shape."""
        weight = self.shared(maps.mean((2, 3))) + self.shared(maps.amax((2, 3)))
        return maps * weight.sigmoid()[:, :, None, None]


class SpatialAttentionPooling(nn.Module):
    """Attention over the cells of 1 x 1, 2 x 2 and 4 x 4 grids; a learned blend of the three."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.score = nn.ModuleList(nn.Conv2d(channels, 1, 1) for _ in SCALES)
        self.blend = nn.Parameter(torch.zeros(len(SCALES)))

    def forward(self, maps: Tensor) -> Tensor:
        """`[N, C, H, W]` -> `[N, C]`."""
        pooled = []
        for scale, score in zip(SCALES, self.score, strict=True):
            cells = maps if maps.shape[2:] == (scale, scale) else F.adaptive_avg_pool2d(maps, scale)
            weight = score(cells).flatten(2).softmax(-1)  # [N, 1, cells]
            pooled.append((cells.flatten(2) * weight).sum(-1))
        return (torch.stack(pooled, -1) * self.blend.softmax(0)).sum(-1)


class HierarchicalAttention(nn.Module):
    """Each magnification attends to the lower ones, lowest first; the lowest passes through."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.place = nn.Parameter(0.02 * torch.randn(count, channels))
        self.attend = nn.ModuleList(nn.MultiheadAttention(channels, HEADS, batch_first=True) for _ in range(count - 1))
        self.norm = nn.ModuleList(nn.LayerNorm(channels) for _ in range(count - 1))

    def forward(self, x: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, M, C]` -> the same shape, and who looked where `[B, M, M]`."""
        seen = [x[:, 0]]
        looked = x.new_zeros(len(x), x.shape[1], x.shape[1])
        for m, (attend, norm) in enumerate(zip(self.attend, self.norm, strict=True), start=1):
            lower = torch.stack(seen, 1) + self.place[:m]
            absent = ~present[:, :m]
            alone = absent.all(1, keepdim=True)  # softmax over nothing would be NaN
            found, weight = attend(x[:, m : m + 1] + self.place[m], lower, lower, key_padding_mask=absent & ~alone)
            seen.append(norm(x[:, m] + found[:, 0] * ~alone))
            looked[:, m, :m] = weight[:, 0] * ~alone
        return torch.stack(seen, 1), looked


class MagnificationFusion(nn.Module):
    """Self-attention weighed by a learned importance, and an MLP on the concatenation; a learned blend of the two."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.importance = nn.Parameter(torch.zeros(count))
        self.attend = nn.MultiheadAttention(channels, HEADS, batch_first=True)
        self.joined = nn.Sequential(nn.Linear(count * channels, channels), nn.ReLU(), nn.Linear(channels, channels))
        self.blend = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[B, M, C]` -> `[B, C]`, importance `[B, M]`, who looked where `[B, M, M]`."""
        x = x * present[..., None]
        importance = self.importance.expand_as(present).masked_fill(~present, -torch.inf).softmax(-1)
        seen, looked = self.attend(x, x, x, key_padding_mask=~present)
        share = self.blend.sigmoid()
        fused = share * (importance[..., None] * seen).sum(1) + (1 - share) * self.joined(x.flatten(1))
        return fused, importance, looked


def head(channels: int, units: tuple[int, int], dropout: float, outputs: int, *, linear: bool) -> nn.Module:
    if linear:  # standardised features, one layer
        return nn.Sequential(nn.BatchNorm1d(channels, affine=False), nn.Linear(channels, outputs))
    layers: list[nn.Module] = []
    for one, other in ((channels, units[0]), units):
        layers += [nn.Linear(one, other), nn.BatchNorm1d(other), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(units[1], outputs))


@dataclass(frozen=True)
class Scores:
    """Logits `[B, 2]` and `[B, 8]`; with the attention modules: importance `[B, M]`, who looked where (row at column)."""

    classes: Tensor
    types: Tensor
    importance: Tensor | None = None
    hierarchy: Tensor | None = None
    fusion: Tensor | None = None


class MagnificationNet(nn.Module):
    """`attention` lists the modules: all four are MMNet, none is the concatenation. `trains=linear`: frozen backbones whose batch
    norm still adapts its statistics, and one layer."""

    def __init__(
        self,
        *,
        magnifications: list[str],
        attention: list[str],
        trains: str,
        backbone: str,
        size: int,
        units: list[int],
        stochastic_depth: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.order = [m for m in MAGNIFICATIONS if m in magnifications]
        self.backbones = nn.ModuleDict(
            {m: build_backbone(backbone, size=size, stochastic_depth=stochastic_depth) for m in self.order}
        )
        channels, count = channels_of(backbone), len(self.order)
        self.channels = channels
        within: dict[str, nn.Module] = {}
        for m in self.order:
            layers: list[nn.Module] = [ChannelAttention(channels)] if "channel" in attention else []
            pool = (
                SpatialAttentionPooling(channels)
                if "spatial" in attention
                else nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
            )
            within[m] = nn.Sequential(*layers, pool)
        self.within = nn.ModuleDict(within)
        self.hierarchical = HierarchicalAttention(channels, count) if "hierarchical" in attention else None
        self.fusion = MagnificationFusion(channels, count) if "fusion" in attention else None
        width = channels if self.fusion else count * channels
        how: dict[str, Any] = {"units": tuple(units), "dropout": dropout, "linear": trains == "linear"}
        self.classes = head(width, outputs=len(CLASSES), **how)
        self.types = head(width, outputs=len(TYPES), **how)
        if trains == "linear":
            self.backbones.requires_grad_(False)

    def encode(self, magnification: str, images: Tensor) -> Tensor:
        """Normalised images of one magnification `[N, 3, S, S]` -> vectors `[N, C]`."""
        return self.within[magnification](self.backbones[magnification].extract_features(images))  # type: ignore[operator]

    def combine(self, x: Tensor, present: Tensor) -> Scores:
        """Vectors `[B, M, C]` and which of them there are `[B, M]` -> scores."""
        importance = hierarchy = looked = None
        if self.hierarchical is not None:
            x, hierarchy = self.hierarchical(x, present)
        if self.fusion is not None:
            x, importance, looked = self.fusion(x, present)
        else:
            x = (x * present[..., None]).flatten(1)
        return Scores(self.classes(x), self.types(x), importance, hierarchy, looked)

    def forward(self, images: list[Tensor], present: Tensor) -> Scores:
        """M tensors of normalised images `[B, 3, S, S]`, lowest magnification first, and `present` `[B, M]`."""
        vectors = []
        for m, own, there in zip(self.order, images, present.T, strict=True):
            if there.all():
                vectors.append(self.encode(m, own))
                continue
            # an absent image is not computed: it must not enter batch norm's statistics
            rows = there.nonzero()[:, 0]
            vector = self.encode(m, own[rows]) if len(rows) else own.new_zeros(0, self.channels)
            vectors.append(vector.new_zeros(len(own), self.channels).index_copy(0, rows, vector))
        return self.combine(torch.stack(vectors, 1), present)


def normalise(images: Tensor) -> Tensor:
    """uint8 `[N, H, W, 3]` -> `[N, 3, H, W]`, channels last in memory, by ImageNet's mean and SD."""
    mean, sd = (torch.tensor(v, device=images.device) * 255 for v in (MEAN, SD))
    return ((images.float() - mean) / sd).permute(0, 3, 1, 2)
