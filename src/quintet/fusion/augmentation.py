"""Augmentation on the device, with kornia: a patient's images share every draw; the clinical row is left alone."""

import torch
from torch import Tensor, nn

from quintet.params.fusion import FusionAugment


class Augmentation(nn.Module):
    """Volumes `[B, M, S, S, S]` in [0, 1], modalities as channels, so that they turn and mirror together."""

    def __init__(self, how: FusionAugment) -> None:
        super().__init__()
        from kornia.augmentation import RandomAffine3D

        self.how = how
        self.affine = RandomAffine3D((how.rotation_deg,) * 3, p=how.affine)

    @torch.no_grad()
    def forward(self, volumes: Tensor) -> Tensor:
        with torch.autocast(volumes.device.type, enabled=False):
            x = volumes.float()
            mirrored = torch.rand(len(x), device=x.device) < self.how.flip
            x[mirrored] = x[mirrored].flip(-1)
            x = self.affine(x)
            gain, shift = (2 * torch.rand(2, len(x), 1, 1, 1, 1, device=x.device) - 1) * self.how.intensity
            return x * (1 + gain) + shift * (x > 0)
