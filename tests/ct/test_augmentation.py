import pytest
import torch

from quintet.ct.model.augmentation import Augmentation
from quintet.ct.model.networks import network_input


@pytest.fixture
def params(make_params):
    return make_params().ct.training.augment


def cubes():
    torch.manual_seed(0)
    coarse = torch.rand(3, 1, 4, 4, 4)
    return (torch.nn.functional.interpolate(coarse, size=(16, 16, 16), mode="trilinear")[:, 0] * 255).to(torch.uint8)


def test_transform_equals_kornia(params):
    augment = Augmentation(params.model_copy(update={"rotation_deg": 20.0, "scale": 0.2}))
    volumes = cubes()
    torch.manual_seed(1)
    ours = augment.transform(network_input(volumes, (16, 16, 16)), 16)
    torch.manual_seed(1)
    theirs = augment.affine(volumes[:, None] / 255)[:, 0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert (ours - volumes / 255).abs().mean() > 0.01


def test_probability_zero_changes_nothing_and_one_changes_everything(params):
    none = Augmentation(params.model_copy(update={"mirror": 0.0, "affine": 0.0, "noise": 0.0}))
    assert torch.equal(none(cubes(), (8, 16, 16)), network_input(cubes(), (8, 16, 16)))
    still = {"mirror": 0.0, "affine": 1.0, "noise": 0.0, "rotation_deg": 0.0, "scale": 0.0}
    identity = Augmentation(params.model_copy(update=still))
    torch.testing.assert_close(identity(cubes(), (8, 16, 16)), network_input(cubes(), (8, 16, 16)), atol=1e-3, rtol=0)
    noisy = Augmentation(params.model_copy(update={"mirror": 0.0, "affine": 0.0, "noise": 1.0, "noise_sd": 0.05}))
    assert (noisy(cubes(), (16, 16, 16)) - network_input(cubes(), (16, 16, 16))).std().item() == pytest.approx(0.05, rel=0.05)


def test_a_mirrored_scan_has_its_sides_swapped(params):
    mirror = Augmentation(params.model_copy(update={"mirror": 1.0, "affine": 0.0, "noise": 0.0}))
    assert torch.equal(mirror(cubes(), (16, 16, 16)), network_input(cubes().flip(3), (16, 16, 16)))


def test_same_seed_same_result(params):
    augment = Augmentation(params)
    results = []
    for _ in range(2):
        torch.manual_seed(7)
        results.append(augment(cubes(), (8, 8, 8)))
    assert torch.equal(*results)
