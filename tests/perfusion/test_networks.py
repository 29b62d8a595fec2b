"""The three architectures: what they share with nnU-Net's network and with each other, and what attention costs."""

import math
from typing import get_args

import pytest
import torch
from monai.networks.nets import DynUNet

from quintet.params import PerfusionConfig
from quintet.perfusion.model.networks import ARCHITECTURES, CrossAttention, InstanceNorm, TerritoryNet, divisor, plan_stages

PLAN = plan_stages([32, 32], (2.6, 2.6), 8)


def make(arch="shared", separate_at="decoder", channels=2, plan=PLAN, deep=True):
    torch.manual_seed(0)
    return TerritoryNet(channels, plan, arch=arch, separate_at=separate_at, attention_tokens=16, deep_supervision=deep)


def test_plan_follows_nnunets_rules():
    published = plan_stages([72, 56], (2.625, 2.625), 32)
    assert published.strides == [(1, 1), (2, 2), (2, 2), (2, 2)]
    assert published.features == [32, 64, 128, 256]
    assert divisor(published) == (8, 8)
    thick = plan_stages([64, 64], (6.0, 2.0), 32)  # the coarse axis waits until the other has caught up
    assert thick.strides[1] == (1, 2)
    assert thick.kernels[0] == (1, 3)
    assert (2, 2) in thick.strides
    assert plan_stages([512, 512], (1, 1), 32).features[-1] == 512


def test_shared_is_monais_dynunet():
    """The same weights in MONAI's network give the same logits: the parameters come in the same order."""
    ours = make(deep=False).eval()
    theirs = DynUNet(
        2,
        2,
        2,
        kernel_size=PLAN.kernels,
        strides=PLAN.strides,
        upsample_kernel_size=PLAN.strides[1:],
        filters=PLAN.features,
        norm_name=("INSTANCE", {"affine": True}),
        deep_supervision=False,
    ).eval()

    def weights(net, parts):
        return [p for part in parts for p in part.parameters()]

    own = weights(ours, [*ours.encoder.stages, *ours.decoders[0].levels, ours.heads[0]])
    other = weights(theirs, [theirs.input_block, *theirs.downsamples, theirs.bottleneck, *theirs.upsamples, theirs.output_block])
    assert len(own) == len(other) > 30
    with torch.no_grad():
        for a, b in zip(own, other, strict=True):
            b.copy_(a)
        x = torch.randn(2, 2, 32, 32)
        torch.testing.assert_close(ours(x)[0], theirs(x), rtol=1e-4, atol=1e-5)


def test_separate_at_head_with_tied_weights_is_shared():
    shared, head = make("shared"), make("separate", "head")
    state = shared.state_dict()
    tied = {
        name: state[name.replace("heads.1.", "heads.0.")][int(name[6]) : int(name[6]) + 1]
        if name.startswith("heads")
        else state[name]
        for name in head.state_dict()
    }
    head.load_state_dict(tied)
    x = torch.randn(2, 2, 32, 32)
    for a, b in zip(shared(x), head(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_separate_decoders_are_independent():
    net = make("separate")
    net(torch.randn(1, 2, 32, 32))[0][:, 0].sum().backward()
    reached = [any(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters()) for decoder in net.decoders]
    assert reached == [True, False]
    crossed = make("crossattention")
    crossed(torch.randn(1, 2, 32, 32))[0][:, 0].sum().backward()
    assert all(any(p.grad is not None and p.grad.abs().sum() > 0 for p in d.parameters()) for d in crossed.decoders)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("channels", [2, 4])
def test_shapes_in_training_and_evaluation(arch, channels):
    net = make(arch, channels=channels)
    scales = net(torch.randn(1, channels, 40, 24))
    assert [tuple(s.shape) for s in scales] == [(1, 2, 40 // 2**i, 24 // 2**i) for i in range(len(PLAN.features) - 2)]
    assert len(net.eval()(torch.randn(1, channels, 40, 24))) == 1


def test_names_in_params_are_the_registry():
    assert set(get_args(PerfusionConfig.model_fields["arch"].annotation)) == set(ARCHITECTURES)


def test_attention_at_its_limit_takes_no_more_tokens():
    attention = CrossAttention(8, tokens=16)
    for height, width in ((4, 4), (5, 4), (17, 9), (40, 3)):
        side = attention.pool_size(height, width)
        assert math.ceil(height / side) * math.ceil(width / side) <= 16
        left, right = attention(torch.randn(1, 8, height, width), torch.randn(1, 8, height, width))
        assert left.shape == right.shape == (1, 8, height, width)
    assert attention.pool_size(4, 4) == 1


def test_attention_goes_both_ways_with_the_same_weights():
    attention = CrossAttention(8, tokens=64).eval()
    a, b = torch.randn(2, 1, 8, 6, 5).unbind()
    to_a, to_b = attention(a, b)
    swapped_b, swapped_a = attention(b, a)
    torch.testing.assert_close(to_a, swapped_a)
    torch.testing.assert_close(to_b, swapped_b)
    by_hand = attention.norm(a.flatten(2).transpose(1, 2)), attention.norm(b.flatten(2).transpose(1, 2))
    expected = attention.attention(by_hand[0], by_hand[1], by_hand[1], need_weights=False)[0].transpose(1, 2).view_as(a)
    torch.testing.assert_close(to_a - a, expected, rtol=1e-4, atol=1e-5)


def test_attentions_memory_grows_linearly_with_the_pixels():
    """Bytes kept for the backward pass, from 32 x 32 to 256 x 256 pixels at 64 tokens: never more than in proportion."""
    attention = CrossAttention(8, tokens=64)

    def kept(side: int) -> int:
        sizes: list[int] = []
        x = torch.randn(2, 1, 8, side, side, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel() * t.element_size()) or t, lambda t: t):
            attention(*x.unbind())
        return sum(sizes)

    used = {side: kept(side) for side in (32, 64, 128, 256)}
    for side in (64, 128, 256):
        assert used[side] <= 4.1 * used[side // 2], used
    assert used[256] < 256 * 256 * 8 * 4 * 20  # far from the 256^4 entries of a full attention matrix


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_instance_norm_in_both_precisions(dtype, tolerance):
    torch.manual_seed(0)
    ours, reference = InstanceNorm(3, 3), torch.nn.InstanceNorm2d(3, affine=True)
    torch.nn.init.normal_(ours.weight)
    reference.load_state_dict(ours.state_dict())
    x = 5 + 2 * torch.randn(2, 3, 9, 7)
    torch.testing.assert_close(ours(x.to(dtype)).float(), reference(x), atol=tolerance, rtol=tolerance)
