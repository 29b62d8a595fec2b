import numpy as np
import pytest
import torch
from torch import nn

from quintet.breakhis.data.tree import MAGNIFICATIONS
from quintet.breakhis.model.networks import (
    ChannelAttention,
    HierarchicalAttention,
    MagnificationFusion,
    MagnificationNet,
    SpatialAttentionPooling,
    build_backbone,
    normalise,
)
from quintet.errors import InputError
from quintet.training.models import load_pretrained_weights

ALL = torch.ones(3, 4, dtype=torch.bool)
MODULES = ["channel", "spatial", "hierarchical", "fusion"]


def build(**changes):
    torch.manual_seed(0)
    values = {
        "magnifications": list(MAGNIFICATIONS),
        "attention": MODULES,
        "trains": "all",
        "backbone": "small",
        "size": 32,
        "units": [16, 8],
        "stochastic_depth": 0.0,
        "dropout": 0.0,
    }
    return MagnificationNet(**values | changes)


def test_channel_attention_against_a_loop():
    torch.manual_seed(0)
    module, maps = ChannelAttention(24), torch.randn(2, 24, 3, 5)
    found = module(maps)
    for n in range(2):
        mean = torch.stack([maps[n, c].mean() for c in range(24)])
        peak = torch.stack([maps[n, c].max() for c in range(24)])
        weight = torch.sigmoid(module.shared(mean) + module.shared(peak))
        for c in range(24):
            torch.testing.assert_close(found[n, c], maps[n, c] * weight[c])


@pytest.mark.parametrize("side", [4, 8])
def test_spatial_attention_pooling_against_a_loop(side):
    torch.manual_seed(0)
    module, maps = SpatialAttentionPooling(16), torch.randn(2, 16, side, side)
    module.blend.data = torch.tensor([0.3, -0.2, 0.9])
    blend = module.blend.softmax(0)
    for n in range(2):
        total = torch.zeros(16)
        for k, scale in enumerate((1, 2, 4)):
            step = side // scale
            cells = [
                maps[n, :, i * step : (i + 1) * step, j * step : (j + 1) * step].mean((1, 2))
                for i in range(scale)
                for j in range(scale)
            ]
            scores = torch.stack([module.score[k].weight[0, :, 0, 0] @ c + module.score[k].bias[0] for c in cells])
            total = total + blend[k] * sum(w * c for w, c in zip(scores.softmax(0), cells, strict=True))
        torch.testing.assert_close(module(maps)[n], total)


def naive_attention(attend: nn.MultiheadAttention, query, keys, values):
    """Head by head, query by query."""
    size, heads = attend.embed_dim, attend.num_heads
    q, k, v = (
        x @ w.T + b
        for x, w, b in zip((query, keys, values), attend.in_proj_weight.split(size), attend.in_proj_bias.split(size), strict=True)
    )
    joined = []
    for h in range(heads):
        part = slice(h * size // heads, (h + 1) * size // heads)
        weight = (q[part] @ k[:, part].T / (size // heads) ** 0.5).softmax(-1)
        joined.append(weight @ v[:, part])
    return attend.out_proj(torch.cat(joined))


@pytest.mark.parametrize("present", [(1, 1, 1, 1), (0, 1, 0, 1), (0, 0, 1, 1), (0, 0, 0, 1), (1, 0, 0, 0)])
def test_hierarchical_attention_against_a_loop_over_what_is_there(present):
    """A masked magnification is as if it did not exist."""
    torch.manual_seed(0)
    module, x = HierarchicalAttention(16, 4).eval(), torch.randn(1, 4, 16)
    found, looked = module(x, torch.tensor([present], dtype=torch.bool))
    seen: list[tuple[int, torch.Tensor]] = []
    for m in (m for m in range(4) if present[m]):
        value = x[0, m]
        if m:
            if seen:
                keys = torch.stack([v + module.place[k] for k, v in seen])
                value = value + naive_attention(module.attend[m - 1], value + module.place[m], keys, keys)
            value = module.norm[m - 1](value)
        torch.testing.assert_close(found[0, m], value)
        seen.append((m, value))
        expected = 1.0 if [k for k, _ in seen[:-1]] else 0.0
        assert looked[0, m].sum().item() == pytest.approx(expected, abs=1e-5)
        assert (looked[0, m, m:] == 0).all()


def test_hierarchical_attention_sees_only_lower_magnifications():
    torch.manual_seed(0)
    module = HierarchicalAttention(16, 4)
    x = torch.randn(3, 4, 16, requires_grad=True)
    found, _ = module(x, ALL)
    for m in range(4):
        grad = torch.autograd.grad(found[:, m].square().sum(), x, retain_graph=True)[0].abs().sum((0, 2))
        assert (grad[: m + 1] > 0).all()
        assert (grad[m + 1 :] == 0).all()
    torch.testing.assert_close(found[:, 0], x[:, 0])  # 40X passes through


@pytest.mark.parametrize("present", [(1, 1, 1, 1), (0, 1, 0, 1), (0, 0, 1, 0)])
def test_fusion_against_a_loop_over_what_is_there(present):
    torch.manual_seed(0)
    module, x = MagnificationFusion(16, 4).eval(), torch.randn(1, 4, 16)
    module.importance.data, module.blend.data = torch.tensor([0.5, -1.0, 2.0, 0.1]), torch.tensor(0.7)
    found, importance, _ = module(x, torch.tensor([present], dtype=torch.bool))
    there = [m for m in range(4) if present[m]]
    weight = torch.softmax(module.importance[there], 0)
    tokens = x[0, there]
    attended = sum(w * naive_attention(module.attend, x[0, m], tokens, tokens) for w, m in zip(weight, there, strict=True))
    joined = torch.cat([x[0, m] if present[m] else torch.zeros(16) for m in range(4)])
    share = torch.sigmoid(module.blend)
    torch.testing.assert_close(found[0], share * attended + (1 - share) * module.joined(joined))
    torch.testing.assert_close(importance[0, there], weight)
    assert importance.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("attention", [MODULES, [], ["hierarchical"], ["fusion"]])
def test_what_an_absent_image_holds_changes_nothing(attention):
    net = build(attention=attention).train()
    images = [torch.randn(4, 3, 32, 32) for _ in range(4)]
    present = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    other = [torch.where(present[:, m, None, None, None], x, torch.full_like(x, 7.0)) for m, x in enumerate(images)]
    states = []
    for batch in (images, other):
        torch.manual_seed(1)
        net = build(attention=attention).train()
        scores = net(batch, present)
        (scores.classes.sum() + scores.types.sum()).backward()
        grads = torch.cat([p.grad.ravel() for p in net.parameters() if p.grad is not None])
        states.append((scores.classes, scores.types, grads, net.state_dict()["backbones.40X._bn0.running_mean"]))
    for one, two in zip(*states, strict=True):
        assert torch.isfinite(one).all()
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_a_magnification_that_nobody_has():
    net = build().train()
    present = ALL.clone()
    present[:, 2] = False
    scores = net([torch.randn(3, 3, 32, 32) for _ in range(4)], present)
    scores.classes.sum().backward()
    assert torch.isfinite(scores.classes).all()
    assert all(p.grad is None for p in net.backbones["200X"].parameters())


def test_every_configuration_has_the_scores_of_the_spec(values):
    for name, config in values["breakhis"]["configs"].items():
        net = build(**config)
        scores = net([torch.randn(3, 3, 32, 32) for _ in config["magnifications"]], ALL[:, : len(config["magnifications"])])
        assert scores.classes.shape == (3, 2), name
        assert scores.types.shape == (3, 8)
        assert len(net.backbones) == len(config["magnifications"])
        trained = {n.split(".")[0] for n, p in net.named_parameters() if p.requires_grad}
        assert ("backbones" in trained) == (config["trains"] == "all"), name
    assert len(values["breakhis"]["configs"]) == 7


def test_encoding_once_and_combining_is_the_same_as_the_whole():
    net = build().eval()
    images = [torch.randn(3, 3, 32, 32) for _ in range(4)]
    with torch.inference_mode():
        vectors = torch.stack([net.encode(m, x) for m, x in zip(MAGNIFICATIONS, images, strict=True)], 1)
        torch.testing.assert_close(net.combine(vectors, ALL).classes, net(images, ALL).classes)


def test_published_backbones_and_weights(tmp_path):
    """The real loading code on a state dict made here; its names are the library's."""
    net = build_backbone("b0", size=64, stochastic_depth=0.2)
    assert net._bn1.num_features == 1280
    assert net._global_params.drop_connect_rate == 0.2
    assert len(build_backbone("b1", size=64, stochastic_depth=0.0)._blocks) == 23
    state = {n: torch.full_like(v, 0.25) for n, v in net.state_dict().items()}
    state |= {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}
    torch.save(state, tmp_path / "b0.pth")
    origin = load_pretrained_weights(net, str(tmp_path / "b0.pth"), "", drop=("_fc.",))
    assert "md5" in origin
    assert all((v == v.new_tensor(0.25)).all() for v in net.state_dict().values())
    with pytest.raises(InputError, match="do not fit"):
        load_pretrained_weights(build_backbone("b1", size=64, stochastic_depth=0.0), str(tmp_path / "b0.pth"), "", drop=("_fc.",))


def test_normalise_is_imagenets_and_channels_last():
    images = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8)
    found = normalise(images)
    assert found.shape == (2, 3, 5, 7)
    assert found.is_contiguous(memory_format=torch.channels_last)
    expected = (images.numpy() / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(found.permute(0, 2, 3, 1), expected, atol=1e-5)
