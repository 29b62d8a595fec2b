"""Augmentation on the device: mirrored sides, small rotations and scalings with kornia's parameters, and noise."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintet.ct.model.networks import Size, network_input
from quintet.params.ct import CtAugment


class Augmentation(nn.Module):
    """Stored cubes `[B, S, S, S]` uint8 -> augmented network input `[B, D, H, W]`, values in [0, 1] before noise.

    Angles apply to the stored cube, whose sides are equal, not to the network's grid. Voxels outside it are 0, the lower end of
    the window.
    """

    def __init__(self, params: CtAugment) -> None:
        super().__init__()
        from kornia.augmentation import RandomAffine3D

        self.params = params
        self.affine = RandomAffine3D((params.rotation_deg,) * 3, scale=(1 - params.scale, 1 + params.scale), p=1.0)

    @torch.no_grad()
    def forward(self, volumes: Tensor, size: Size) -> Tensor:
        x = network_input(volumes, size)
        mirrored = torch.rand(len(x), device=x.device) < self.params.mirror
        x[mirrored] = x[mirrored].flip(-1)
        transformed = torch.rand(len(x), device=x.device) < self.params.affine
        x[transformed] = self.transform(x[transformed], volumes.shape[-1])
        noisy = torch.rand(len(x), device=x.device) < self.params.noise
        x[noisy] += self.params.noise_sd * torch.randn_like(x[noisy])
        return x

    def transform(self, x: Tensor, side: int) -> Tensor:
        """Rotate and scale each volume of `[B, D, H, W]`, resized from a cube of `side` voxels, by random parameters."""
        from kornia.geometry.conversions import normalize_homography3d

        if not len(x):
            return x
        cube = (side, side, side)
        params = self.affine.forward_parameters(torch.Size((len(x), 1, *cube)))
        matrix = self.affine.compute_transformation(x.new_empty(len(x), 1, *cube), params, self.affine.flags)
        inverse = torch.linalg.inv(normalize_homography3d(matrix.float(), cube, cube))[:, :3].to(x.device)
        grid = F.affine_grid(inverse, [len(x), 1, *x.shape[1:]], align_corners=False)
        return F.grid_sample(x[:, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, 0]
