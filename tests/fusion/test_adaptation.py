"""Test-time training: the network does not change, other patients do not matter, and what is learnt is only kept under guard."""

import pytest
import torch

from quintet.fusion.evaluation.adaptation import _entropy, adapt
from quintet.fusion.model.losses import loss_of_values, standardised
from quintet.fusion.model.noise import shared_noise
from tests.fusion.test_networks import batch, make


def encode(net, rows):
    volumes, clinical, present = (x[rows] for x in batch())
    with torch.no_grad():
        return net.encoders.features(volumes, [clinical], present), present


def run(net, rows, *, steps=3, rate=1.0):
    features, present = encode(net, rows)
    start = shared_noise(2, net.noise_size).expand(len(rows), -1, -1)
    with torch.no_grad():
        plain = net(net.tokens(features, present), present, start, steps=3).transpose(0, 1)
    return adapt(net, features, present, start, plain, steps=steps, rate=rate, sampling_steps=3)


@pytest.fixture(params=["attention", "diffusion"])
def net(request):
    return make(request.param, outputs=1)  # a risk: kept wherever the loss falls


def test_weights_are_untouched_and_results_repeat(net):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    one, again = (run(net, [0, 1, 5]) for _ in range(2))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(one.scores, again.scores)
    assert one.adapted.any()


def test_order_and_batch_size_do_not_matter(net):
    whole = run(net, [0, 1, 2, 3, 4, 5])
    reordered = run(net, [5, 2, 0, 4, 3, 1])
    torch.testing.assert_close(reordered.scores, whole.scores[[5, 2, 0, 4, 3, 1]], atol=1e-4, rtol=1e-3)
    for i in range(6):
        torch.testing.assert_close(run(net, [i]).scores[0], whole.scores[i], atol=1e-4, rtol=1e-3)


def test_patients_with_a_single_modality_have_nothing_to_withhold(net):
    assert run(net, [2, 3, 4]).adapted.tolist() == [False] * 3


@pytest.mark.parametrize(("steps", "rate"), [(0, 1.0), (3, float("nan"))])
def test_without_steps_or_with_a_broken_loss_the_trained_weights_predict(net, steps, rate):
    found = run(net, [0, 1, 2], steps=steps, rate=rate)
    features, present = encode(net, [0, 1, 2])
    start = shared_noise(2, net.noise_size).expand(3, -1, -1)
    plain = net(net.encoders.tokens(features, present), present, start, steps=3).transpose(0, 1)
    torch.testing.assert_close(found.scores, plain, atol=1e-5, rtol=1e-4)
    assert not found.adapted.any()


@pytest.mark.parametrize("method", ["attention", "diffusion"])
def test_a_prediction_never_becomes_more_certain(method):
    """Of many networks, some predictions change, and none of them loses entropy; without the guard, some would."""
    changed = 0
    for seed in range(6):
        net = make(method)
        torch.manual_seed(seed)
        torch.nn.init.normal_(net.predict[0][-1].weight, std=3.0)
        plain, adapted = (run(net, [0, 1, 5], steps=steps, rate=3.0) for steps in (0, 10))
        assert (_entropy(adapted.scores) >= _entropy(plain.scores) - 1e-6).all()
        changed += int((adapted.scores - plain.scores).abs().amax((1, 2)).gt(1e-4).sum())
    assert 0 < changed < 18


def test_mapped_steps_equal_those_of_a_single_patient():
    """Against torch's SGD on the shift, with the withheld modalities in a loop."""
    net = make("attention", outputs=1)
    features, present = encode(net, [1])
    mapped = run(net, [1], steps=2, rate=1.0)
    shift = [torch.zeros(f.shape[1], requires_grad=True) for f in features]
    optimizer = torch.optim.SGD(shift, lr=1.0)

    def tokens_of(features):
        return net.encoders.tokens(features, present)

    for _ in range(2):
        moved = [(f + s) * present[:, k, None] for k, (f, s) in enumerate(zip(features, shift, strict=True))]
        errors = []
        for k in (0, 2):  # the patient's modalities
            others = present.clone()
            others[:, k] = False
            fused = net.fuse(tokens_of(moved) * others[..., None], others)
            errors.append((net.decode[k](fused) - standardised(moved[k])).square().mean())
        optimizer.zero_grad()
        (sum(errors) / 2).backward()
        optimizer.step()
    moved = [(f + s) * present[:, k, None] for k, (f, s) in enumerate(zip(features, shift, strict=True))]
    assert mapped.adapted.item()
    torch.testing.assert_close(mapped.scores[0], net(tokens_of(moved), present)[:, 0], atol=1e-5, rtol=1e-4)


def test_the_loss_of_probabilities_is_that_of_their_logits():
    p, target = torch.tensor([[0.2, 0.8], [0.6, 0.4]]).double(), torch.tensor([[1.0, 1], [0, 1]])
    assert loss_of_values(p.numpy(), target) == pytest.approx(-(torch.tensor(0.8).log() + torch.tensor(0.6).log()).item() / 2)
