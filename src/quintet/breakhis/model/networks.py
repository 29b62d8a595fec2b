"""MMNet and its controls: one EfficientNet per magnification, attention within and between them, two heads.

Shapes: B quadruples, M magnifications of the configuration, C channels of a feature vector. `present` `[B, M]` tells which images
exist; the pixels of an absent one have no effect.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import BlockDecoder, efficientnet, url_map
from torch import Tensor, nn

from quintet.backbones import IMAGENET_MEAN, IMAGENET_SD, LITE0_MEAN, LITE0_SD, build_lite0
from quintet.breakhis.data.classes import CLASSES, MAGNIFICATIONS, TYPES

HEADS = 8  # of multi-head attention
SCALES = (1, 2, 4)  # grids of the spatial attention pooling
REDUCTION = 12  # of the channel attention
# for small images and few cores: three of B0's blocks with a total stride of 16, 8 to 24 channels, 160 features
SMALL = ["r1_k3_s22_e1_i64_o32_se0.25", "r1_k3_s22_e4_i32_o80_se0.25", "r1_k3_s22_e4_i80_o160_se0.25"]
COEFFICIENTS = {"small": (0.125, 1.0), "b0": (1.0, 1.0), "b1": (1.0, 1.1)}  # width, depth (Tan and Le 2019)


def build_backbone(name: str, *, size: int, stochastic_depth: float) -> Any:
    """An EfficientNet without its classifier, a Module. The library derives its padding from the input `size` (pixels)."""
    if name == "lite0":
        return build_lite0(size=size, stochastic_depth=stochastic_depth)
    width, depth = COEFFICIENTS[name]
    blocks, common = efficientnet(
        width_coefficient=width, depth_coefficient=depth, image_size=size, drop_connect_rate=stochastic_depth, include_top=False
    )
    if name == "small":  # running statistics over about 10 steps instead of 100, as training from scratch is short
        blocks, common = BlockDecoder.decode(SMALL), common._replace(batch_norm_momentum=0.9)
    net = EfficientNet(blocks, common)
    for module in net.modules():
        if hasattr(module, "_swish"):  # the library's version saves memory but takes twice the time
            module._swish = nn.SiLU()
    return net


def weights_url(backbone: str) -> str:
    """Where the ImageNet weights are downloaded from; empty for a backbone without a download."""
    return str(url_map.get(f"efficientnet-{backbone}", ""))


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
    """Attention over the cells of 1 x 1, 2 x 2 and 4 x 4 grids, and a learned blend of the three results."""

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


class FeatureNorm(nn.BatchNorm1d):
    """Standardises feature vectors `[N, C]`: batch norm without a scale of its own; with running statistics for a single vector.
    Raw vectors of different patients are nearly equal, and attention between magnifications learns slowly from them."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            return super().forward(x)
        return F.batch_norm(x, self.running_mean, self.running_var, eps=self.eps)


class HierarchicalAttention(nn.Module):
    """Each magnification attends to all lower ones. The lowest has none and is only normalised: without that, the fusion would
    get it at a fraction of the others' scale, and hardly learn from it."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.place = nn.Parameter(0.02 * torch.randn(count, channels))
        self.attend = nn.ModuleList(nn.MultiheadAttention(channels, HEADS, batch_first=True) for _ in range(count - 1))
        self.norm = nn.ModuleList(nn.LayerNorm(channels) for _ in range(count))

    def forward(self, x: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, M, C]` -> the same shape, and the attention weights `[B, M, M]` (query, key)."""
        outputs = [self.norm[0](x[:, 0])]
        weights = x.new_zeros(len(x), x.shape[1], x.shape[1])
        for m, (attend, norm) in enumerate(zip(self.attend, self.norm[1:], strict=True), start=1):
            lower = torch.stack(outputs, 1) + self.place[:m]
            absent = ~present[:, :m]
            none_lower = absent.all(1, keepdim=True)  # a softmax over nothing would be NaN
            attended, weight = attend(x[:, m : m + 1] + self.place[m], lower, lower, key_padding_mask=absent & ~none_lower)
            outputs.append(norm(x[:, m] + attended[:, 0] * ~none_lower))
            weights[:, m, :m] = weight[:, 0] * ~none_lower
        return torch.stack(outputs, 1), weights


class MagnificationFusion(nn.Module):
    """Self-attention weighted by a learned importance, an MLP on the concatenation, and a learned blend of the two."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.importance = nn.Parameter(torch.zeros(count))
        self.attend = nn.MultiheadAttention(channels, HEADS, batch_first=True)
        self.joined = nn.Sequential(nn.Linear(count * channels, channels), nn.ReLU(), nn.Linear(channels, channels))
        self.blend = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[B, M, C]` -> `[B, C]`, the importance `[B, M]` and the attention weights `[B, M, M]` (query, key)."""
        x = x * present[..., None]
        importance = self.importance.expand_as(present).masked_fill(~present, -torch.inf).softmax(-1)
        attended, weights = self.attend(x, x, x, key_padding_mask=~present)
        blend = self.blend.sigmoid()
        fused = blend * (importance[..., None] * attended).sum(1) + (1 - blend) * self.joined(x.flatten(1))
        return fused, importance, weights


def build_head(channels: int, units: tuple[int, int], dropout: float, outputs: int, *, linear: bool) -> nn.Module:
    """The layers from a feature vector to logits: two hidden layers, or (`linear`) a single layer."""
    if linear:
        return nn.Linear(channels, outputs)
    layers: list[nn.Module] = []
    for inputs, hidden in ((channels, units[0]), units):
        layers += [nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(units[1], outputs))


@dataclass(frozen=True)
class Output:
    """Logits and, if the network has the attention modules, their weights averaged over heads."""

    classes: Tensor  # [B, 2]
    types: Tensor  # [B, 8]
    importance: Tensor | None = None  # [B, M]
    hierarchy: Tensor | None = None  # [B, M, M] (query, key)
    fusion: Tensor | None = None  # [B, M, M] (query, key)


class MagnificationNet(nn.Module):
    """`attention` lists the attention modules: with all four the network is MMNet, with none it is plain concatenation.

    `trains="linear"` freezes the backbones and trains one layer. Only random backbones go on adapting the statistics of their
    batch norms, without which their features would hardly differ; `pretrained` ones stay as they are.
    """

    pretrained = False

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
        linear = trains == "linear"
        depth = 0.0 if linear else stochastic_depth
        backbones = {m: build_backbone(backbone, size=size, stochastic_depth=depth) for m in self.order}
        self.backbones = nn.ModuleDict(backbones)
        channels, count = int(backbones[self.order[0]]._bn1.num_features), len(self.order)
        self.channels = channels
        self.lite0 = backbone == "lite0"
        self.within = nn.ModuleDict({m: _pooling(channels, attention) for m in self.order})
        self.hierarchical = HierarchicalAttention(channels, count) if "hierarchical" in attention else None
        self.fusion = MagnificationFusion(channels, count) if "fusion" in attention else None
        width = channels if self.fusion else count * channels
        self.classes = build_head(width, (units[0], units[1]), dropout, len(CLASSES), linear=linear)
        self.types = build_head(width, (units[0], units[1]), dropout, len(TYPES), linear=linear)
        self.linear = linear
        if linear:
            self.backbones.requires_grad_(False)

    def train(self, mode: bool = True) -> "MagnificationNet":
        super().train(mode)
        if self.linear and self.pretrained:
            self.backbones.eval()
        return self

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 `[N, H, W, 3]` -> `[N, 3, H, W]` (channels last in memory), standardised as the backbone's weights expect."""
        expected = (LITE0_MEAN, LITE0_SD) if self.lite0 else (IMAGENET_MEAN, IMAGENET_SD)
        # one long row instead of an axis of three channels: the same numbers in a fifth of the time on a CPU
        mean, sd = ((torch.tensor(v, device=images.device) * 255).expand(3).repeat(images.shape[2]) for v in expected)
        return images.float().flatten(2).sub_(mean).div_(sd).view(images.shape).permute(0, 3, 1, 2)

    def encode(self, magnification: str, images: Tensor) -> Tensor:
        """Normalised images of one magnification `[N, 3, S, S]` -> vectors `[N, C]`."""
        return self.within[magnification](self.backbones[magnification].extract_features(images))  # type: ignore[operator]

    def combine(self, x: Tensor, present: Tensor) -> Output:
        """Feature vectors `[B, M, C]` and `present` `[B, M]` -> logits."""
        importance = hierarchy = fusion = None
        if self.hierarchical is not None:
            x, hierarchy = self.hierarchical(x, present)
        if self.fusion is not None:
            x, importance, fusion = self.fusion(x, present)
        else:
            x = (x * present[..., None]).flatten(1)
        return Output(self.classes(x), self.types(x), importance, hierarchy, fusion)

    def forward(self, images: list[Tensor], present: Tensor) -> Output:
        """M tensors of normalised images `[B, 3, S, S]`, lowest magnification first, and `present` `[B, M]` -> logits."""
        vectors = []
        for magnification, x, exists in zip(self.order, images, present.T, strict=True):
            if exists.all():
                vectors.append(self.encode(magnification, x))
                continue
            # an absent image is not encoded, because it must not enter batch norm's statistics
            rows = exists.nonzero()[:, 0]
            vector = self.encode(magnification, x[rows]) if len(rows) else x.new_zeros(0, self.channels)
            vectors.append(vector.new_zeros(len(x), self.channels).index_copy(0, rows, vector))
        return self.combine(torch.stack(vectors, 1), present)


def _pooling(channels: int, attention: list[str]) -> nn.Module:
    """From a feature map `[N, C, H, W]` to a normalised vector `[N, C]`."""
    layers: list[nn.Module] = [ChannelAttention(channels)] if "channel" in attention else []
    layers += [SpatialAttentionPooling(channels)] if "spatial" in attention else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, FeatureNorm(channels))
