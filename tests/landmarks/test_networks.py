"""Output shapes, sizes and weight names of the networks, soft-argmax and coordinate attention."""

import pytest
import torch

from quintet.landmarks.model.networks import CoordinateAttention, LandmarkNet, located, soft_argmax

NETWORKS = [("resnet18", "regression"), ("resnet18", "heatmap"), ("unet", "heatmap")]


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize(("arch", "head"), NETWORKS)
def test_every_network_predicts_fractions_and_trains_all_its_weights(arch, head, attention):
    net = LandmarkNet(arch=arch, head=head, attention=attention and arch != "unet", width=8, dropout=0.1)
    points, spread, heatmaps = net(torch.rand(2, 1, 64, 64))
    assert (heatmaps is None) == (head == "regression")
    if heatmaps is not None:
        assert heatmaps.shape == (2, 15, 16, 16)
        torch.testing.assert_close(heatmaps.sum((2, 3)), torch.ones(2, 15))
    assert points.shape == (2, 15, 2)
    assert spread.shape == (2, 15)
    assert (points >= 0).all()
    assert (points <= 1).all()
    (points.sum() + spread.sum()).backward()
    assert all(p.grad is not None for p in net.parameters())


def test_resnet18_has_torchvisions_size_and_names():
    """11,176,512 weights without the classifier, with the names of the published state dict."""
    net = LandmarkNet(arch="resnet18", head="regression", attention=False, width=64, dropout=0.5).backbone.net
    assert sum(p.numel() for p in net.parameters()) == 11_176_512
    names = set(net.state_dict())
    assert {
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.conv1.weight",
        "layer2.0.downsample.0.weight",
        "layer4.1.bn2.bias",
    } <= names
    assert len(names) == 120
    assert net(torch.rand(1, 3, 64, 64)).shape[1] == 512


def test_soft_argmax_of_a_peak_is_its_cell_centre():
    maps = torch.full((1, 2, 8, 16), -50.0)
    maps[0, 0, 3, 5] = 50
    maps[0, 1, 0, 0] = maps[0, 1, 0, 2] = 50
    points, spread, _ = soft_argmax(maps)
    torch.testing.assert_close(points[0], torch.tensor([[5.5 / 16, 3.5 / 8], [1.5 / 16, 0.5 / 8]]))
    torch.testing.assert_close(spread[0], torch.tensor([0.0, 1 / 16]), atol=1e-4, rtol=0)


def test_the_mean_of_heatmaps_gives_the_mean_of_their_points():
    """So an ensemble needs no heatmaps."""
    one, other = (soft_argmax(3 * torch.randn(2, 15, 8, 8, generator=torch.Generator().manual_seed(s))) for s in (0, 1))
    mean = located((one.heatmaps + other.heatmaps) / 2)
    torch.testing.assert_close(mean.points, (one.points + other.points) / 2)


def test_coordinate_attention_weighs_rows_and_columns():
    """The weight of (c, h, w) is a product of one number for (c, h) and one for (c, w)."""
    torch.manual_seed(0)
    attention = CoordinateAttention(8).eval()
    x = torch.rand(1, 8, 5, 7) + 0.5
    weight = (attention(x) / x)[0]
    separable = weight[:, :, :1] * weight[:, :1, :] / weight[:, :1, :1]
    torch.testing.assert_close(weight, separable, rtol=1e-4, atol=1e-6)
