"""Test-time training: nothing stays behind, nobody else matters, zero steps are none, a loss that does not fall is refused."""

import pytest
import torch

from quintet.fusion.adaptation import adapt, adapted_names
from quintet.fusion.losses import contrast_with_bank
from quintet.fusion.networks import Draw, noise_for, seeds_of
from quintet.params.fusion import FusionLossWeights, FusionTtt
from tests.fusion.test_networks import batch, make

WEIGHTS = FusionLossWeights(prediction=1, diffusion=1, reconstruction=1, contrastive=0.5)
NAMES = [f"p{i}" for i in range(6)]


def run(net, rows, *, steps=3, rate=1e-2, parameters="fusion"):
    volumes, clinical, present = (x[rows] for x in batch())
    features = net.encoders.features(volumes, clinical, present)
    given = [f.detach() for f in features] if parameters == "fusion" else [volumes, clinical]
    names = [NAMES[i] for i in rows]
    return adapt(
        net,
        given,
        present,
        noise_for(names, 2, 16),
        how=FusionTtt(steps=steps, rate=rate, parameters=parameters),
        weights=WEIGHTS,
        temperature=0.2,
        sampling_steps=3,
        seeds=seeds_of(names),
    )


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


def test_mapped_steps_are_those_of_one_patient_alone():
    """Against torch's SGD on a copy of the network that really is written to."""
    net = make("attention")
    net.bank.normal_()
    net.known.fill_(True)
    volumes, clinical, present = (x[[1]] for x in batch())
    with torch.no_grad():
        features = net.encoders.features(volumes, clinical, present)
    mapped = run(net, [1], steps=2, rate=1e-2)
    names = set(adapted_names(net, "fusion"))
    optimizer = torch.optim.SGD([p for name, p in net.named_parameters() if name in names], lr=1e-2)
    for _ in range(2):
        tokens = net.encoders.tokens(features, present)
        learnt = net.learn(features, tokens, present, present, tokens[:, 0], Draw(torch.zeros(0), torch.zeros(0)))
        contrast = contrast_with_bank(tokens[0], present[0], net.bank, net.known, temperature=0.2)
        optimizer.zero_grad()
        (learnt.reconstruction + 0.5 * contrast).backward()
        optimizer.step()
    with torch.no_grad():
        by_hand = net(net.encoders.tokens(features, present), present)
    torch.testing.assert_close(mapped.scores[0], by_hand[:, 0], atol=1e-5, rtol=1e-4)


def test_which_weights_adapt(net):
    names = {kind: set(adapted_names(net, kind)) for kind in ("norm", "fusion", "all")}
    assert names["fusion"] < names["all"]
    assert names["norm"] < names["all"]
    assert not any(name.startswith("predict.") for name in names["all"])
    assert not any(name.startswith("encoders.images") for name in names["fusion"])
    assert any(name.startswith("encoders.images") for name in names["norm"])
