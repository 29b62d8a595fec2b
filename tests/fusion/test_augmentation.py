"""One random transform for all images of a patient, another one for every patient; the same seed gives the same transforms."""

import torch

from quintet.fusion.model.augmentation import Augmentation


def cubes():
    torch.manual_seed(0)
    coarse = torch.rand(8, 1, 5, 5, 5)
    one = torch.nn.functional.interpolate(coarse, size=(15, 15, 15), mode="trilinear")
    return one.expand(-1, 3, -1, -1, -1).contiguous()  # all modalities are equal


def test_modalities_of_a_patient_change_together(make_params):
    augment = {"flip": 0.5, "affine": 0.7, "rotation_deg": 20.0, "intensity": 0.2}
    params = make_params({"fusion.training.augment": augment}).fusion.training.augment
    torch.manual_seed(1)
    out = Augmentation(params)(cubes())
    torch.testing.assert_close(out[:, 1], out[:, 0])
    torch.testing.assert_close(out[:, 2], out[:, 0])
    assert (out - cubes()).abs().mean() > 0.01
    torch.manual_seed(1)
    same = Augmentation(params)(cubes()[:1].expand(8, -1, -1, -1, -1).contiguous())
    assert len({round(float(x.sum()), 3) for x in same}) > 4  # every patient has its own transform


def test_probability_zero_changes_nothing_and_seeds_repeat(make_params):
    none = {"flip": 0.0, "affine": 0.0, "rotation_deg": 20.0, "intensity": 0.0}
    torch.testing.assert_close(
        Augmentation(make_params({"fusion.training.augment": none}).fusion.training.augment)(cubes()), cubes()
    )
    augment, found = Augmentation(make_params().fusion.training.augment), []
    for _ in range(2):
        torch.manual_seed(7)
        found.append(augment(cubes()))
    assert torch.equal(*found)
    only = {"flip": 1.0, "affine": 0.0, "rotation_deg": 20.0, "intensity": 0.0}
    assert torch.equal(
        Augmentation(make_params({"fusion.training.augment": only}).fusion.training.augment)(cubes()), cubes().flip(-1)
    )
