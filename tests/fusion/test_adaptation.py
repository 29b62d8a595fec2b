"""Test-time training: nothing stays behind, nobody else matters, zero steps are none, a loss that does not fall is refused."""

import pytest
import torch

from quintet.fusion import adaptation
from quintet.fusion.adaptation import adapt, adapted_names
from quintet.fusion.networks import noise_for, seeds_of
from quintet.params.fusion import FusionLossWeights, FusionTtt
from tests.fusion.test_networks import batch, make

WEIGHTS = FusionLossWeights(prediction=1, diffusion=1, reconstruction=1, contrastive=0.5)
NAMES = [f"p{i}" for i in range(6)]


def run(net, rows, *, steps=3, rate=1e-2, parameters="fusion"):
    volumes, clinical, present = (x[rows] for x in batch())
    features = net.encoders.features(volumes, clinical, present)
    given = [f.detach() for f in features] if parameters == "fusion" else [volumes, clinical]
    names = [NAMES[i] for i in rows]
    return adapt(net, given, present, noise_for(names, 2, 16), how=FusionTtt(steps=steps, rate=rate, parameters=parameters),
                 weights=WEIGHTS, temperature=0.2, sampling_steps=3, seeds=seeds_of(names))  # fmt: skip


@pytest.fixture(params=["attention", "diffusion"])
def net(request):
    net = make(request.param)
    net.bank.normal_()
    net.known.fill_(True)
    return net


@pytest.mark.parametrize("parameters", ["norm", "fusion", "all"])
def test_weights_are_untouched_and_results_repeat(net, parameters):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    one, again = (run(net, [0, 1, 4], parameters=parameters) for _ in range(2))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(one.scores, again.scores)
    assert one.adapted.any()


@pytest.mark.parametrize("parameters", ["fusion", "all"])
def test_order_and_batch_size_do_not_matter(net, parameters):
    whole = run(net, [0, 1, 2, 3, 4, 5], parameters=parameters)
    turned = run(net, [5, 2, 0, 4, 3, 1], parameters=parameters)
    torch.testing.assert_close(turned.scores, whole.scores[[5, 2, 0, 4, 3, 1]], atol=1e-4, rtol=1e-3)
    for i in range(6):
        torch.testing.assert_close(run(net, [i], parameters=parameters).scores[0], whole.scores[i], atol=1e-4, rtol=1e-3)


def test_zero_steps_are_no_adaptation(net):
    found = run(net, [0, 1, 2], steps=0)
    volumes, clinical, present = (x[:3] for x in batch())
    tokens = net.encoders.tokens(net.encoders.features(volumes, clinical, present), present)
    plain = net(tokens, present, noise_for(NAMES[:3], 2, 16), steps=3).transpose(0, 1)
    torch.testing.assert_close(found.scores, plain, atol=1e-5, rtol=1e-4)
    assert not found.adapted.any()


def test_a_loss_that_does_not_fall_is_refused(net):
    """With a rate that destroys the weights, predictions are those of the trained ones."""
    wild, plain = run(net, [0, 1, 2], rate=1e3), run(net, [0, 1, 2], steps=0)
    assert not wild.adapted.any()
    torch.testing.assert_close(wild.scores, plain.scores, atol=1e-5, rtol=1e-4)
    assert not torch.equal(run(net, [0, 1, 2]).scores, plain.scores)


def test_mapped_adam_equals_torchs():
    torch.manual_seed(0)
    start, grads = torch.randn(2, 3), torch.randn(4, 2, 3)
    state, moments = {"w": start}, {"w": (torch.zeros(2, 3), torch.zeros(2, 3))}
    theirs = [torch.nn.Parameter(row.clone()) for row in start]
    optimizers = [torch.optim.Adam([p], lr=0.01) for p in theirs]
    for step in range(4):
        state = adaptation._adam(state, {"w": grads[step]}, moments, 0.01, step + 1)
        for k, (p, optimizer) in enumerate(zip(theirs, optimizers, strict=True)):
            p.grad = grads[step, k].clone()
            optimizer.step()
    torch.testing.assert_close(state["w"], torch.stack([p.detach() for p in theirs]))


def test_which_weights_adapt(net):
    names = {kind: set(adapted_names(net, kind)) for kind in ("norm", "fusion", "all")}
    assert names["fusion"] < names["all"]
    assert names["norm"] < names["all"]
    assert not any(name.startswith("predict.") for name in names["all"])
    assert not any(name.startswith("encoders.images") for name in names["fusion"])
    assert any(name.startswith("encoders.images") for name in names["norm"])
