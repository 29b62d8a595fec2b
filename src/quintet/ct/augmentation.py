"""Augmentation on the device: small rotations and scales as kornia draws them, noise."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintet.ct.networks import Triple, see
from quintet.params.ct import CtAugment


class Augmentation(nn.Module):
    """Stored cubes `[B, S, S, S]` uint8 -> what the network sees, `[B, D, H, W]` in [0, 1], some turned and scaled, some with
    noise.

    Angles are those of the cube, whose sides are equally long, whatever numbers of voxels the network sees along them. What lies
    outside of a turned cube is 0, the window's lower end.
    """

    def __init__(self, how: CtAugment) -> None:
        super().__init__()
        from kornia.augmentation import RandomAffine3D

        self.how = how
        self.affine = RandomAffine3D((how.rotation_deg,) * 3, scale=(1 - how.scale, 1 + how.scale), p=1.0)

    @torch.no_grad()
    def forward(self, volumes: Tensor, size: Triple) -> Tensor:
        x = see(volumes, size)
        turned = torch.rand(len(x), device=x.device) < self.how.affine
        x[turned] = self.turn(x[turned], volumes.shape[-1])
        noisy = torch.rand(len(x), device=x.device) < self.how.noise
        x[noisy] += self.how.noise_sd * torch.randn_like(x[noisy])
        return x

    def turn(self, x: Tensor, side: int) -> Tensor:
        """Each of `[B, D, H, W]`, seen of a cube of `side` voxels, by an angle and a factor of its own."""
        from kornia.geometry.conversions import normalize_homography3d

        if not len(x):
            return x
        cube = (side, side, side)
        drawn = self.affine.forward_parameters(torch.Size((len(x), 1, *cube)))
        matrix = self.affine.compute_transformation(x.new_empty(len(x), 1, *cube), drawn, self.affine.flags)
        back = torch.linalg.inv(normalize_homography3d(matrix.float(), cube, cube))[:, :3].to(x.device)
        grid = F.affine_grid(back, [len(x), 1, *x.shape[1:]], align_corners=False)
        return F.grid_sample(x[:, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, 0]
