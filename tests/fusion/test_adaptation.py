"""Test-time training: the network does not change, other patients do not matter, adaptation without a falling loss is undone."""

import pytest
import torch

from quintet.fusion.evaluation.adaptation import adapt, adapted_names
from quintet.fusion.model.losses import contrast_with_bank
from quintet.fusion.model.methods import DiffusionNoise
from quintet.fusion.model.networks import initial_noise, patient_seeds
from quintet.params.fusion import FusionLossWeights, FusionTtt
from tests.fusion.test_networks import batch, make

WEIGHTS = FusionLossWeights(prediction=1, diffusion=1, reconstruction=1, contrastive=0.5)
NAMES = [f"p{i}" for i in range(6)]


def run(net, rows, *, steps=3, rate=1e-2, parameters="fusion"):
    volumes, clinical, present = (x[rows] for x in batch())
    features = net.encoders.features(volumes, [clinical], present)
    inputs = [f.detach() for f in features] if parameters == "fusion" else [volumes, clinical]
    names = [NAMES[i] for i in rows]
    return adapt(
        net,
        inputs,
        present,
        initial_noise(names, 2, 16),
        ttt=FusionTtt(steps=steps, rate=rate, parameters=parameters),
        weights=WEIGHTS,
        temperature=0.2,
        sampling_steps=3,
        seeds=patient_seeds(names),
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
    reordered = run(net, [5, 2, 0, 4, 3, 1], parameters=parameters)
    torch.testing.assert_close(reordered.scores, whole.scores[[5, 2, 0, 4, 3, 1]], atol=1e-4, rtol=1e-3)
    for i in range(6):
        torch.testing.assert_close(run(net, [i], parameters=parameters).scores[0], whole.scores[i], atol=1e-4, rtol=1e-3)


def test_zero_steps_do_not_adapt(net):
    found = run(net, [0, 1, 2], steps=0)
    volumes, clinical, present = (x[:3] for x in batch())
    tokens = net.encoders.tokens(net.encoders.features(volumes, [clinical], present), present)
    plain = net(tokens, present, initial_noise(NAMES[:3], 2, 16), steps=3).transpose(0, 1)
    torch.testing.assert_close(found.scores, plain, atol=1e-5, rtol=1e-4)
    assert not found.adapted.any()


def test_adaptation_is_undone_if_the_loss_does_not_fall(net):
    """With a rate that destroys the weights, predictions come from the trained weights."""
    diverged, plain = run(net, [0, 1, 2], rate=1e3), run(net, [0, 1, 2], steps=0)
    assert not diverged.adapted.any()
    torch.testing.assert_close(diverged.scores, plain.scores, atol=1e-5, rtol=1e-4)
    assert not torch.equal(run(net, [0, 1, 2]).scores, plain.scores)


def test_mapped_steps_equal_those_of_a_single_patient():
    """Against torch's SGD on a network that is changed in place."""
    net = make("attention")
    net.bank.normal_()
    net.known.fill_(True)
    volumes, clinical, present = (x[[1]] for x in batch())
    with torch.no_grad():
        features = net.encoders.features(volumes, [clinical], present)
    mapped = run(net, [1], steps=2, rate=1e-2)
    names = set(adapted_names(net, "fusion"))
    optimizer = torch.optim.SGD([p for name, p in net.named_parameters() if name in names], lr=1e-2)
    for _ in range(2):
        tokens = net.encoders.tokens(features, present)
        output = net.training_output(
            features, tokens, present, present, tokens[:, 0], DiffusionNoise(torch.zeros(0), torch.zeros(0))
        )
        contrast = contrast_with_bank(tokens[0], present[0], net.bank, net.known, temperature=0.2)
        optimizer.zero_grad()
        (output.reconstruction_loss + 0.5 * contrast).backward()
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
