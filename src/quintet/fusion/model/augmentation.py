"""Augmentation on the device with kornia: one random transform for all images of a patient; clinical features do not change."""

import torch
from torch import Tensor, nn

from quintet.params.fusion import FusionAugment


class Augmentation(nn.Module):
    """Volumes `[B, M, S, S, S]` from 0 to 4 (data/cubes.py: MAX_INTENSITY); modalities are channels, so that they are rotated
    and mirrored together."""

    def __init__(self, params: FusionAugment) -> None:
        super().__init__()
        from kornia.augmentation import RandomAffine3D

        self.params = params
        self.affine = RandomAffine3D((params.rotation_deg,) * 3, p=params.affine)

    @torch.no_grad()
    def forward(self, volumes: Tensor) -> Tensor:
        with torch.autocast(volumes.device.type, enabled=False):
            x = volumes.float()
            mirrored = torch.rand(len(x), device=x.device) < self.params.flip
            x[mirrored] = x[mirrored].flip(-1)
            x = self.affine(x)
            gain, shift = (2 * torch.rand(2, len(x), 1, 1, 1, 1, device=x.device) - 1) * self.params.intensity
            return x * (1 + gain) + shift * (x > 0)
