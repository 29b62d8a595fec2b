"""Augmentation: what moves together stays together, and the mirror exchanges the sides."""

from dataclasses import replace

import pytest
import torch

from quintet.params.perfusion import PerfusionAugment
from quintet.perfusion.model.augmentation import AugmentationParams, draw_params, mirror, sample_offsets, swap_sides, transform

PATCH = (24, 16)
EVERYTHING = PerfusionAugment(
    rotation=1,
    rotation_deg=180,
    scale=1,
    noise=1,
    blur=1,
    brightness=1,
    contrast=1,
    low_resolution=1,
    gamma=1,
    gamma_inverted=1,
    mirror_left_right=0.5,
    mirror_front_back=0.5,
)
NOTHING = PerfusionAugment(**{name: 0 for name in PerfusionAugment.model_fields})


def batch(count=8, channels=3, size=(32, 20)):
    torch.manual_seed(1)
    images = torch.nn.functional.avg_pool2d(torch.randn(count, channels, size[0] + 4, size[1] + 4), 5, stride=1)
    masks = torch.zeros(count, 2, *size)
    masks[:, 0, 6:20, 3:9] = 1
    masks[:, 1, 8:25, 8:16] = 1
    return images, masks


def draw(augment=EVERYTHING, count=8, channels=3, shift=None) -> AugmentationParams:
    torch.manual_seed(2)
    return draw_params(torch.zeros(count, 2) if shift is None else shift, channels, PATCH, augment)


def mirrored(params: AugmentationParams) -> AugmentationParams:
    """The parameters that have the same effect on the mirror images as these have on the images."""
    each = ("blur", "resolution", "brightness", "contrast", "gamma", "gamma_inverted")
    swapped = {name: swap_sides(getattr(params, name)) for name in each}
    sign = torch.tensor([-1.0, 1.0])
    return replace(params, shift=params.shift * sign, angle=-params.angle, noise=mirror(params.noise), **swapped)


def test_mirror_is_an_involution_and_exchanges_the_sides():
    images, masks = batch()
    assert torch.equal(mirror(mirror(images)), images)
    assert torch.equal(mirror(images)[:, 0], images[:, 1].flip(-1))
    assert torch.equal(mirror(images)[:, 2], images[:, 2].flip(-1))  # a T1w channel has no side
    assert torch.equal(mirror(masks)[:, 1], masks[:, 0].flip(-1))
    assert torch.equal(swap_sides(masks), masks[:, [1, 0]])


def test_the_whole_augmentation_is_equivariant_under_the_mirror():
    """Mirroring before (with mirrored params) equals mirroring after, for images, masks and every transformation at once."""
    images, masks = batch()
    params = draw(shift=torch.tensor([[2.0, -3.0]]).expand(8, 2))
    one = transform(mirror(images), mirror(masks), mirrored(params), PATCH)
    other = (mirror(x) for x in transform(images, masks, params, PATCH))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    assert not torch.equal(mirrored(params).blur, params.blur)


def test_a_drawn_left_right_mirror_is_the_mirror():
    images, masks = batch()
    plain = draw(NOTHING)
    flipped = replace(plain, flip_x=torch.ones(8, dtype=torch.bool))
    for a, b in zip(transform(images, masks, flipped, PATCH), transform(images, masks, plain, PATCH), strict=True):
        torch.testing.assert_close(a, mirror(b), rtol=1e-4, atol=1e-5)


def test_nothing_drawn_cuts_the_patch_and_changes_nothing():
    images, masks = batch()
    moved, moved_masks = transform(images, masks, draw(NOTHING), PATCH)
    torch.testing.assert_close(moved, images[:, :, 4:28, 2:18], rtol=1e-4, atol=1e-4)
    assert torch.equal(moved_masks, masks[:, :, 4:28, 2:18])
    shifted, _ = transform(images, masks, draw(NOTHING, shift=torch.tensor([[2.0, -3.0]]).expand(8, 2)), PATCH)
    torch.testing.assert_close(shifted, images[:, :, 1:25, 4:20], rtol=1e-4, atol=1e-4)


def test_masks_move_with_the_images():
    """An image that shows its own mask is still its mask after any movement."""
    _, masks = batch()
    images = torch.cat([masks, masks[:, :1]], dim=1)
    moves = {"rotation": 1.0, "rotation_deg": 180.0, "scale": 1.0, "mirror_left_right": 0.5, "mirror_front_back": 0.5}
    geometric = NOTHING.model_copy(update=moves)
    moved, moved_masks = transform(images, masks, draw(geometric), PATCH)
    assert torch.equal((moved[:, :2] >= 0.5).float(), moved_masks)
    assert moved_masks.sum((1, 2, 3)).std() > 0


def test_a_quarter_turn_turns_the_image():
    images, masks = batch(size=(20, 20))
    params = replace(draw(NOTHING), angle=torch.full((8,), torch.pi / 2))
    moved, _ = transform(images, masks, replace(params, noise=torch.zeros(8, 3, 20, 20)), (20, 20))
    turned = torch.rot90(images, 1, (2, 3)), torch.rot90(images, -1, (2, 3))
    assert min((moved - t).abs().max() for t in turned) < 1e-3


def test_twice_the_field_of_view_halves_the_territory():
    images, masks = torch.zeros(1, 2, 40, 40), torch.zeros(1, 2, 40, 40)
    masks[:, :, 10:30, 10:30] = 1
    params = replace(draw(NOTHING, 1, 2), scale=torch.tensor([2.0]), noise=torch.zeros(1, 2, 40, 40))
    assert transform(images, masks, params, (40, 40))[1].sum() == 2 * 10 * 10


@pytest.mark.parametrize("name", ["noise", "blur", "brightness", "contrast", "low_resolution", "gamma", "gamma_inverted"])
def test_each_transformation_changes_images_and_never_masks(name):
    images, masks = batch(count=40)
    augment = NOTHING.model_copy(update={name: 1.0})
    changed, changed_masks = transform(images, masks, draw(augment, 40), PATCH)
    plain, plain_masks = transform(images, masks, draw(NOTHING, 40), PATCH)
    assert torch.equal(changed_masks, plain_masks)
    assert torch.isfinite(changed).all()
    assert (changed - plain).abs().amax((1, 2, 3)).gt(1e-3).float().mean() > 0.5
    if name in ("contrast", "gamma", "gamma_inverted"):
        limits = [(x.amin((2, 3)), x.amax((2, 3))) for x in (changed, plain)]
        if name == "contrast":
            assert (limits[0][0] >= limits[1][0] - 1e-5).all()
            assert (limits[0][1] <= limits[1][1] + 1e-5).all()
        else:
            torch.testing.assert_close(changed.mean((2, 3)), plain.mean((2, 3)), atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(changed.std((2, 3)), plain.std((2, 3)), atol=1e-3, rtol=1e-2)


def test_shares_are_kept():
    torch.manual_seed(0)
    augment = NOTHING.model_copy(update={"rotation": 0.2, "rotation_deg": 180.0, "gamma": 0.3, "mirror_left_right": 0.5})
    params = draw_params(torch.zeros(4000, 2), 2, (2, 2), augment)
    assert (params.angle != 0).float().mean().item() == pytest.approx(0.2, abs=0.03)
    assert (params.gamma[:, 0] != 1).float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert params.flip_x.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert not params.flip_y.any()
    assert params.noise.abs().max() == 0


def test_patches_lie_inside_and_show_the_foreground_they_were_asked_for():
    masks = torch.zeros(200, 2, 40, 30)
    masks[:, 0, 4, 26] = 1  # one pixel near a corner
    sizes = torch.tensor([[40, 30]]).expand(200, 2)
    torch.manual_seed(0)
    wanted = sample_offsets(masks, sizes, (10, 10), torch.ones(200, dtype=torch.bool))
    assert (wanted == wanted[0]).all()
    _, cut = transform(torch.zeros(200, 2, 40, 30), masks, params_at(wanted), (10, 10))
    assert (cut.sum((1, 2, 3)) == 1).all()
    free = sample_offsets(masks, sizes, (10, 10), torch.zeros(200, dtype=torch.bool))
    assert free[:, 0].abs().max() <= 10
    assert free[:, 1].abs().max() <= 15
    assert free.std(0).min() > 3
    assert (sample_offsets(masks, sizes, (40, 30), torch.ones(200, dtype=torch.bool)) == 0).all()


def params_at(shift):
    return draw_params(shift, 2, (10, 10), NOTHING)
