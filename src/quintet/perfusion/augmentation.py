"""nnU-Net's 2D augmentations on whole batches, on the device: one resampling for crop, rotation, scale and mirror.

Ranges and shares are nnU-Net v2's; what differs: images are resampled linearly (there cubic), and blur and low resolution are
applied in one product of matrices before brightness and contrast. A left-right mirror exchanges the LICA and RICA channels and
the two masks, or the labels would become wrong."""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from quintet.params.perfusion import PerfusionAugment

SCALE, NOISE_VARIANCE, BLUR_SD, BRIGHTNESS, CONTRAST, RESOLUTION, GAMMA = (
    (0.7, 1.4),
    (0.0, 0.1),
    (0.5, 1.0),
    (0.75, 1.25),
    (0.75, 1.25),
    (0.5, 1.0),
    (0.7, 1.5),
)


def swap_sides(x: Tensor) -> Tensor:
    """Exchange channels 0 and 1 (left, right) of `[B, C, ...]`; further channels stay."""
    return torch.cat([x[:, [1, 0]], x[:, 2:]], dim=1) if x.shape[1] > 2 else x.flip(1)


def mirror(x: Tensor) -> Tensor:
    """The left-right mirror image of `[B, C, H, W]`: columns reversed, sides exchanged. An involution."""
    return swap_sides(x.flip(-1))


@dataclass(frozen=True)
class Draws:
    """What happens to each image of a batch; 0 (or 1 for factors) where nothing does. All `[B]` unless said otherwise."""

    shift: Tensor  # [B, 2], whole pixels (x, y) from the frame's centre to the patch's
    angle: Tensor  # radians
    scale: Tensor  # of the field of view: 2 shows twice as much
    flip_x: Tensor  # bool
    flip_y: Tensor  # bool
    noise: Tensor  # [B, C, H, W], added
    blur: Tensor  # [B, C], SD in pixels
    resolution: Tensor  # [B, C], share of the pixels that a side keeps
    brightness: Tensor  # [B, C], as are the next three
    contrast: Tensor
    gamma: Tensor
    gamma_inverted: Tensor

    def mirrored(self) -> "Draws":
        """The draws that do to the mirror images what these do to the images."""
        sign = self.shift.new_tensor([-1.0, 1.0])
        each = ("blur", "resolution", "brightness", "contrast", "gamma", "gamma_inverted")
        swapped = {name: swap_sides(getattr(self, name)) for name in each}
        return replace(self, shift=self.shift * sign, angle=-self.angle, noise=mirror(self.noise), **swapped)


def draw(shift: Tensor, channels: int, patch: tuple[int, int], how: PerfusionAugment) -> Draws:
    """Draw for a batch with torch's global generator; `shift` `[B, 2]` places the patches."""
    batch, device = len(shift), shift.device

    def chance(share: float, *more: int) -> Tensor:
        return torch.rand(batch, *more, device=device) < share

    def between(low: float, high: float, *more: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *more, device=device)

    def either_side(low: float, high: float, *more: int) -> Tensor:
        """nnU-Net's factors: half below 1, half above."""
        return torch.where(chance(0.5, *more), between(low, 1, *more), between(1, high, *more))

    reach = math.radians(how.rotation_deg)
    sd = torch.where(chance(how.noise), between(*NOISE_VARIANCE), 0.0).sqrt()
    blurred = chance(how.blur)[:, None] & chance(0.5, channels)
    coarse = chance(how.low_resolution)[:, None] & chance(0.5, channels)

    def factor(share: float, low: float, high: float) -> Tensor:
        return torch.where(chance(share)[:, None], either_side(low, high, channels), 1.0)

    return Draws(
        shift=shift,
        angle=torch.where(chance(how.rotation), between(-reach, reach), 0.0),
        scale=torch.where(chance(how.scale), between(*SCALE), 1.0),
        flip_x=chance(how.mirror_left_right),
        flip_y=chance(how.mirror_front_back),
        noise=torch.randn(batch, channels, *patch, device=device) * sd[:, None, None, None],
        blur=torch.where(blurred, between(*BLUR_SD, channels), 0.0),
        resolution=torch.where(coarse, between(*RESOLUTION, channels), 1.0),
        brightness=factor(how.brightness, *BRIGHTNESS),
        contrast=factor(how.contrast, *CONTRAST),
        gamma=factor(how.gamma, *GAMMA),
        gamma_inverted=factor(how.gamma_inverted, *GAMMA),
    )


def place(masks: Tensor, sizes: Tensor, patch: tuple[int, int], foreground: Tensor) -> Tensor:
    """Where to cut: offsets `[B, 2]` (x, y) of the patch's centre from the frame's, in whole pixels, never further out than
    needed.

    `masks` `[B, 2, H, W]`; `sizes` `[B, 2]` (rows, columns that the slices fill); where `foreground` (bool `[B]`) the patch is
    centred on a random territory pixel, as far as the slice allows.
    """
    batch, (height, width) = len(masks), masks.shape[-2:]
    room = ((sizes - sizes.new_tensor(patch)).clamp_min(0) / 2).flip(-1).float()  # (x, y)
    offset = (torch.rand(batch, 2, device=masks.device) * 2 - 1) * room
    inside = masks.amax(1).flatten(1) > 0
    pixel = (torch.rand(batch, height * width, device=masks.device) * inside).argmax(1)
    centre = torch.stack([pixel % width - (width - 1) / 2, torch.div(pixel, width, rounding_mode="floor") - (height - 1) / 2], -1)
    wanted = torch.where((foreground & inside.any(1))[:, None], centre, offset)
    return wanted.clamp(-room, room).round()


def transform(images: Tensor, masks: Tensor, draws: Draws, patch: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Images `[B, C, H, W]` (z-scores) and masks `[B, 2, H, W]` (0, 1) of any frame -> augmented patches of size `patch`."""
    images, masks = _move(images, masks, draws, patch)
    images = images + draws.noise
    images = _soften(images, draws)
    images = images * draws.brightness[:, :, None, None]
    images = _contrast(images, draws.contrast)
    images = _gamma(images, draws.gamma_inverted, sign=-1)
    return _gamma(images, draws.gamma, sign=1), masks


def _move(images: Tensor, masks: Tensor, draws: Draws, patch: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Crop, rotate, scale and mirror in one bilinear resampling; masks are resampled as numbers and cut at 0.5."""
    both = torch.cat([images, masks.to(images.dtype)], dim=1)
    height, width = both.shape[-2:]
    cos, sin = draws.angle.cos() * draws.scale, draws.angle.sin() * draws.scale
    sx, sy = torch.where(draws.flip_x, -1.0, 1.0), torch.where(draws.flip_y, -1.0, 1.0)
    # from output pixels (about the patch's centre) to input pixels (about the frame's), then in units of half the frame
    half = both.new_tensor([width / 2, height / 2])
    ours = both.new_tensor([patch[1] / 2, patch[0] / 2])
    matrix = (
        torch.stack([torch.stack([cos * sx, -sin * sy], -1), torch.stack([sin * sx, cos * sy], -1)], -2) * ours / half[:, None]
    )
    theta = torch.cat([matrix, (draws.shift / half)[..., None]], dim=-1)
    grid = F.affine_grid(theta, [len(both), 1, *patch], align_corners=False)
    moved = F.grid_sample(both, grid, align_corners=False)
    flip = draws.flip_x[:, None, None, None]
    images, masks = moved[:, : images.shape[1]], (moved[:, images.shape[1] :] >= 0.5).to(images.dtype)
    return torch.where(flip, swap_sides(images), images), torch.where(flip, swap_sides(masks), masks)


def _soften(images: Tensor, draws: Draws) -> Tensor:
    """Gaussian blur, then a smaller image drawn large again: products with one matrix per axis, for the images concerned
    alone."""
    concerned = ((draws.blur > 0) | (draws.resolution < 1)).flatten().nonzero()[:, 0]
    if not len(concerned):
        return images
    planes = images.flatten(0, 1)
    blur, resolution = draws.blur.flatten()[concerned], draws.resolution.flatten()[concerned]
    down, across = (_softener(n, blur, resolution) for n in images.shape[-2:])
    softened = down @ planes[concerned] @ across.transpose(1, 2)
    return planes.index_copy(0, concerned, softened).view_as(images)


def _softener(n: int, blur: Tensor, resolution: Tensor) -> Tensor:
    """`[K, n, n]`: rows of weights, each summing to 1."""
    at = torch.arange(n, device=blur.device, dtype=blur.dtype)
    gauss = torch.exp(-0.5 * ((at[:, None] - at) / blur.clamp_min(1e-3)[:, None, None]).square())
    gauss = gauss / gauss.sum(-1, keepdim=True)
    # the small image's nearest pixels (of two equally near ones the mean: a mirror must not matter), linearly interpolated back
    cells = (n * resolution).round().clamp_min(1)[:, None]
    position = ((at + 0.5) * cells / n - 0.5).clamp_min(0).minimum(cells - 1)
    first = position.floor()
    fraction = (position - first)[..., None]

    def nearest(cell: Tensor) -> Tensor:
        place = (cell + 0.5) * n / cells
        return (F.one_hot(place.floor().long(), n) + F.one_hot((place.ceil() - 1).long(), n)) / 2

    linear = nearest(first) * (1 - fraction) + nearest((first + 1).minimum(cells - 1)) * fraction
    whole = (resolution >= 1)[:, None, None]
    return torch.where(whole, torch.eye(n, device=blur.device), linear) @ gauss


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Stretch about the channel's mean, within its own range."""
    mean, low, high = images.mean((2, 3), keepdim=True), images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return ((images - mean) * factor[:, :, None, None] + mean).clamp(low, high)


def _gamma(images: Tensor, gamma: Tensor, *, sign: int) -> Tensor:
    """`x^gamma` on the channel's range (of -x where sign is -1), with the channel's mean and SD restored."""
    chosen = (gamma != 1).any(1).nonzero()[:, 0]
    if not len(chosen):
        return images
    x = images[chosen] * sign
    low = x.amin((2, 3), keepdim=True)
    span = (x.amax((2, 3), keepdim=True) - low).clamp_min(1e-7)
    bent = ((x - low) / span).pow(gamma[chosen][:, :, None, None]) * span + low
    sd, mean = torch.std_mean(x, (2, 3), keepdim=True)
    bent_sd, bent_mean = torch.std_mean(bent, (2, 3), keepdim=True)
    return images.index_copy(0, chosen, ((bent - bent_mean) * sd / bent_sd.clamp_min(1e-7) + mean) * sign)
