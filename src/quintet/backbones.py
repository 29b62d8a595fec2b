"""Backbones shared by several studies."""

import torch
from monai.networks.nets import ResNet
from torch import Tensor, nn

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
