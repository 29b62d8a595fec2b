"""Augmentation on the device: small rotations and scales as kornia draws them, noise."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintet.ct.networks import Triple, see
from quintet.params.ct import CtAugment


class Augmentation(nn.Module):
    """Stored cubes `[B, S, S, S]` uint8 -> what the network sees, `[B, D, H, W]` in [0, 1], some turned and scaled, some with
    noise.

    Turning and resizing are one interpolation, in the cube, whose voxels have equal sides (the network's need not). What lies
    outside of a turned cube is 0, the window's lower end.
    """

    def __init__(self, how: CtAugment) -> None:
        super().__init__()
        from kornia.augmentation import RandomAffine3D

        self.how = how
        self.affine = RandomAffine3D((how.rotation_deg,) * 3, scale=(1 - how.scale, 1 + how.scale), p=1.0)

    @torch.no_grad()
    def forward(self, volumes: Tensor, size: Triple) -> Tensor:
        turned = torch.rand(len(volumes), device=volumes.device) < self.how.affine
        x = torch.empty(len(volumes), *size, device=volumes.device)
        x[~turned] = see(volumes[~turned], size)
        x[turned] = self.turn(volumes[turned], size)
        noisy = torch.rand(len(x), device=x.device) < self.how.noise
        x[noisy] += self.how.noise_sd * torch.randn_like(x[noisy])
        return x

    def turn(self, volumes: Tensor, size: Triple) -> Tensor:
        """Each cube by an angle and a factor of its own."""
        from kornia.geometry.conversions import normalize_homography3d

        if not len(volumes):
            return volumes.new_zeros(0, *size, dtype=torch.float32)
        x = volumes[:, None].float().div_(255)
        side = (volumes.shape[-1],) * 3
        drawn = self.affine.forward_parameters(x.shape)
        matrix = self.affine.compute_transformation(x, drawn, self.affine.flags)
        back = torch.linalg.inv(normalize_homography3d(matrix.float(), side, side))[:, :3].to(x.device)
        grid = F.affine_grid(back, [len(x), 1, *size], align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, 0]
