import pytest
import torch

from quintet.ct.augmentation import Augmentation
from quintet.ct.networks import see


@pytest.fixture
def how(make_params):
    return make_params().ct.augment


def cubes():
    torch.manual_seed(0)
    coarse = torch.rand(3, 1, 4, 4, 4)
    return (torch.nn.functional.interpolate(coarse, size=(16, 16, 16), mode="trilinear")[:, 0] * 255).to(torch.uint8)


def test_turning_equals_kornias_own(how):
    augment = Augmentation(how.model_copy(update={"rotation_deg": 20.0, "scale": 0.2}))
    volumes = cubes()
    torch.manual_seed(1)
    ours = augment.turn(see(volumes, (16, 16, 16)), 16)
    torch.manual_seed(1)
    theirs = augment.affine(volumes[:, None] / 255)[:, 0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert (ours - volumes / 255).abs().mean() > 0.01


def test_nothing_drawn_is_the_input_and_everything_drawn_is_not(how):
    none = Augmentation(how.model_copy(update={"affine": 0.0, "noise": 0.0}))
    assert torch.equal(none(cubes(), (8, 16, 16)), see(cubes(), (8, 16, 16)))
    still = Augmentation(how.model_copy(update={"affine": 1.0, "noise": 0.0, "rotation_deg": 0.0, "scale": 0.0}))
    torch.testing.assert_close(still(cubes(), (8, 16, 16)), see(cubes(), (8, 16, 16)), atol=1e-3, rtol=0)
    noisy = Augmentation(how.model_copy(update={"affine": 0.0, "noise": 1.0, "noise_sd": 0.05}))
    assert (noisy(cubes(), (16, 16, 16)) - see(cubes(), (16, 16, 16))).std().item() == pytest.approx(0.05, rel=0.05)


def test_same_draws_same_numbers(how):
    augment = Augmentation(how)
    results = []
    for _ in range(2):
        torch.manual_seed(7)
        results.append(augment(cubes(), (8, 8, 8)))
    assert torch.equal(*results)
