"""nnU-Net's 2D augmentations on whole batches, on the device: one resampling for crop, rotation, scale and mirror.

Ranges and probabilities are nnU-Net v2's. Two things differ: images are resampled linearly (nnU-Net: cubic), and blur and low
resolution are one matrix product, applied before brightness and contrast. A left-right mirror also exchanges the LICA and RICA
channels and the two masks; otherwise the labels would be wrong."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quintet.params.perfusion import PerfusionAugment

SCALE = (0.7, 1.4)
NOISE_VARIANCE = (0.0, 0.1)
BLUR_SD = (0.5, 1.0)  # pixels
BRIGHTNESS = (0.75, 1.25)
CONTRAST = (0.75, 1.25)
RESOLUTION = (0.5, 1.0)
GAMMA = (0.7, 1.5)


def swap_sides(x: Tensor) -> Tensor:
    """Exchange channels 0 and 1 (left, right) of `[B, C, ...]`; other channels are unchanged."""
    return torch.cat([x[:, [1, 0]], x[:, 2:]], dim=1) if x.shape[1] > 2 else x.flip(1)


def mirror(x: Tensor) -> Tensor:
    """The left-right mirror image of `[B, C, H, W]`: columns reversed, sides exchanged. An involution."""
    return swap_sides(x.flip(-1))


@dataclass(frozen=True)
class AugmentationParams:
    """How each image of a batch is changed; 0 (1 for factors) means no change. All `[B]` unless stated otherwise."""

    shift: Tensor  # [B, 2], whole pixels (x, y) from the frame's centre to the patch's
    angle: Tensor  # radians
    scale: Tensor  # of the field of view: 2 shows twice as much
    flip_x: Tensor  # bool
    flip_y: Tensor  # bool
    noise: Tensor  # [B, C, H, W], added
    blur: Tensor  # [B, C], SD in pixels
    resolution: Tensor  # [B, C], fraction of the pixels kept along each side
    brightness: Tensor  # [B, C], as are the next three
    contrast: Tensor
    gamma: Tensor
    gamma_inverted: Tensor


def draw_params(shift: Tensor, channels: int, patch: tuple[int, int], augment: PerfusionAugment) -> AugmentationParams:
    """Draw the parameters of a batch with torch's global generator; `shift` `[B, 2]` places the patches."""
    batch, device = len(shift), shift.device

    def bernoulli(probability: float, *more: int) -> Tensor:
        return torch.rand(batch, *more, device=device) < probability

    def uniform(low: float, high: float, *more: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *more, device=device)

    def either_side(low: float, high: float, *more: int) -> Tensor:
        """nnU-Net's factors: half below 1, half above."""
        return torch.where(bernoulli(0.5, *more), uniform(low, 1, *more), uniform(1, high, *more))

    max_angle = math.radians(augment.rotation_deg)
    sd = torch.where(bernoulli(augment.noise), uniform(*NOISE_VARIANCE), 0.0).sqrt()
    blurred = bernoulli(augment.blur)[:, None] & bernoulli(0.5, channels)
    coarse = bernoulli(augment.low_resolution)[:, None] & bernoulli(0.5, channels)

    def factor(probability: float, low: float, high: float) -> Tensor:
        return torch.where(bernoulli(probability)[:, None], either_side(low, high, channels), 1.0)

    return AugmentationParams(
        shift=shift,
        angle=torch.where(bernoulli(augment.rotation), uniform(-max_angle, max_angle), 0.0),
        scale=torch.where(bernoulli(augment.scale), uniform(*SCALE), 1.0),
        flip_x=bernoulli(augment.mirror_left_right),
        flip_y=bernoulli(augment.mirror_front_back),
        noise=torch.randn(batch, channels, *patch, device=device) * sd[:, None, None, None],
        blur=torch.where(blurred, uniform(*BLUR_SD, channels), 0.0),
        resolution=torch.where(coarse, uniform(*RESOLUTION, channels), 1.0),
        brightness=factor(augment.brightness, *BRIGHTNESS),
        contrast=factor(augment.contrast, *CONTRAST),
        gamma=factor(augment.gamma, *GAMMA),
        gamma_inverted=factor(augment.gamma_inverted, *GAMMA),
    )


def sample_offsets(masks: Tensor, sizes: Tensor, patch: tuple[int, int], foreground: Tensor) -> Tensor:
    """Where to cut patches: offsets `[B, 2]` (x, y) of the patch's centre from the frame's, in whole pixels, so that patches stay
    inside the slice where they fit.

    `masks` `[B, 2, H, W]`; `sizes` `[B, 2]` (rows and columns of the slices without padding); where `foreground` (bool `[B]`) is
    set the patch is centred on a random territory pixel, as far as the slice allows.
    """
    batch, (height, width) = len(masks), masks.shape[-2:]
    margin = ((sizes - sizes.new_tensor(patch)).clamp_min(0) / 2).flip(-1).float()  # (x, y)
    offset = (torch.rand(batch, 2, device=masks.device) * 2 - 1) * margin
    inside = masks.amax(1).flatten(1) > 0
    pixel = (torch.rand(batch, height * width, device=masks.device) * inside).argmax(1)
    centre = torch.stack([pixel % width - (width - 1) / 2, torch.div(pixel, width, rounding_mode="floor") - (height - 1) / 2], -1)
    wanted = torch.where((foreground & inside.any(1))[:, None], centre, offset)
    return wanted.clamp(-margin, margin).round()


def transform(images: Tensor, masks: Tensor, params: AugmentationParams, patch: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Augmented patches of size `patch` from normalised images `[B, C, H, W]` and masks `[B, 2, H, W]` (0, 1) of any size."""
    images, masks = _resample(images, masks, params, patch)
    images = images + params.noise
    images = _blur(images, params)
    images = images * params.brightness[:, :, None, None]
    images = _contrast(images, params.contrast)
    images = _gamma(images, params.gamma_inverted, sign=-1)
    return _gamma(images, params.gamma, sign=1), masks


def _resample(images: Tensor, masks: Tensor, params: AugmentationParams, patch: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Crop, rotate, scale and mirror in one bilinear resampling; masks are interpolated, then thresholded at 0.5."""
    both = torch.cat([images, masks.to(images.dtype)], dim=1)
    height, width = both.shape[-2:]
    cos, sin = params.angle.cos() * params.scale, params.angle.sin() * params.scale
    sx, sy = torch.where(params.flip_x, -1.0, 1.0), torch.where(params.flip_y, -1.0, 1.0)
    # from output pixels (about the patch's centre) to input pixels (about the frame's), then in units of half the frame
    half = both.new_tensor([width / 2, height / 2])
    ours = both.new_tensor([patch[1] / 2, patch[0] / 2])
    matrix = (
        torch.stack([torch.stack([cos * sx, -sin * sy], -1), torch.stack([sin * sx, cos * sy], -1)], -2) * ours / half[:, None]
    )
    theta = torch.cat([matrix, (params.shift / half)[..., None]], dim=-1)
    grid = F.affine_grid(theta, [len(both), 1, *patch], align_corners=False)
    moved = F.grid_sample(both, grid, align_corners=False)
    flip = params.flip_x[:, None, None, None]
    images, masks = moved[:, : images.shape[1]], (moved[:, images.shape[1] :] >= 0.5).to(images.dtype)
    return torch.where(flip, swap_sides(images), images), torch.where(flip, swap_sides(masks), masks)


def _blur(images: Tensor, params: AugmentationParams) -> Tensor:
    """Gaussian blur, then down- and upsampling, as products with one matrix per axis; only for the images that change."""
    changed = ((params.blur > 0) | (params.resolution < 1)).flatten().nonzero()[:, 0]
    if not len(changed):
        return images
    planes = images.flatten(0, 1)
    blur, resolution = params.blur.flatten()[changed], params.resolution.flatten()[changed]
    down, across = (_blur_matrix(n, blur, resolution) for n in images.shape[-2:])
    blurred = down @ planes[changed] @ across.transpose(1, 2)
    return planes.index_copy(0, changed, blurred).view_as(images)


def _blur_matrix(n: int, blur: Tensor, resolution: Tensor) -> Tensor:
    """`[K, n, n]`: each row holds weights that sum to 1."""
    at = torch.arange(n, device=blur.device, dtype=blur.dtype)
    gauss = torch.exp(-0.5 * ((at[:, None] - at) / blur.clamp_min(1e-3)[:, None, None]).square())
    gauss = gauss / gauss.sum(-1, keepdim=True)
    # nearest pixels of the small image (the mean of two equally near ones, so that a mirror commutes), interpolated back linearly
    small = (n * resolution).round().clamp_min(1)[:, None]
    position = ((at + 0.5) * small / n - 0.5).clamp_min(0).minimum(small - 1)
    first = position.floor()
    fraction = (position - first)[..., None]

    def nearest(pixel: Tensor) -> Tensor:
        source = (pixel + 0.5) * n / small
        return (F.one_hot(source.floor().long(), n) + F.one_hot((source.ceil() - 1).long(), n)) / 2

    linear = nearest(first) * (1 - fraction) + nearest((first + 1).minimum(small - 1)) * fraction
    unchanged = (resolution >= 1)[:, None, None]
    return torch.where(unchanged, torch.eye(n, device=blur.device), linear) @ gauss


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
