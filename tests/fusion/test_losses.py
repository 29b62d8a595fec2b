"""Losses by hand and by loops; a batch that defines no loss gives a differentiable zero."""

import numpy as np
import pytest
import torch

from quintet.fusion.model.losses import contrastive_loss, prediction_loss, reconstruction_loss, standardised


def test_cox_by_hand():
    """Breslow and Efron agree where no two times are equal: the mean over events of the log of the summed hazards at risk, minus
    the event's own log hazard."""
    risk, time, event = torch.tensor([0.3, -0.5, 1.2, 0.1]), torch.tensor([5.0, 8.0, 2.0, 9.0]), torch.tensor([1.0, 0, 1, 1])
    terms = []
    for i in range(4):
        if event[i]:
            terms.append(torch.logsumexp(risk[time >= time[i]], 0) - risk[i])
    loss = prediction_loss(risk[:, None], torch.stack([time, event], 1), survival_loss="cox")
    assert loss.item() == pytest.approx(torch.stack(terms).mean().item(), abs=1e-5)


def test_coarser_times_have_the_same_scale():
    """Efron (1977) by hand, per event: three of four events at one time."""
    risk, time, event = torch.tensor([0.3, -0.5, 1.2, 0.1, 0.4]), torch.tensor([2.0, 1, 1, 1, 3]), torch.tensor([1.0, 1, 1, 1, 0])
    hazard = risk.exp()
    total, tied = hazard.sum(), hazard[1:4].sum()
    sums = torch.stack([total - tied * k / 3 for k in range(3)] + [hazard[0] + hazard[4]])
    loss = prediction_loss(risk[:, None], torch.stack([time, event], 1), survival_loss="cox")
    assert loss.item() == pytest.approx(((sums.log().sum() - risk[:4].sum()) / 4).item(), abs=1e-5)


def test_squared_error_of_log_times_is_small_for_good_predictions():
    target = torch.tensor([[100.0, 1], [900.0, 1]])
    good = prediction_loss(torch.tensor([[1.4], [-0.8]]), target, survival_loss="mse")
    bad = prediction_loss(torch.tensor([[-0.8], [1.4]]), target, survival_loss="mse")
    assert good < 0.01 < bad


@pytest.mark.parametrize("event", [0.0, 1.0])
def test_survival_batches_without_a_comparison_give_zero(event):
    risk = torch.randn(1 if event else 5, 1, requires_grad=True)
    target = torch.stack([torch.arange(1.0, len(risk) + 1), torch.full((len(risk),), event)], 1)
    loss = prediction_loss(risk, target, survival_loss="cox")
    loss.backward()
    assert loss.item() == 0
    assert (risk.grad == 0).all()


def test_reconstruction_by_loops_without_gradient_into_features():
    torch.manual_seed(0)
    features = [torch.randn(4, 3, requires_grad=True), torch.randn(4, 5, requires_grad=True)]
    decoded = [torch.randn(4, 3, requires_grad=True), torch.randn(4, 5, requires_grad=True)]
    present = torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0]]).bool()
    loss = reconstruction_loss(decoded, features, present)
    each = [(decoded[k][i] - standardised(features[k])[i]).square().mean() for i in range(4) for k in range(2) if present[i, k]]
    assert loss.item() == pytest.approx(torch.stack(each).mean().item(), abs=1e-6)
    loss.backward()
    assert features[0].grad is None
    assert (decoded[0].grad[2] == 0).all()
    assert reconstruction_loss(decoded, features, torch.zeros(4, 2).bool()).item() == 0


def test_contrast_by_loops():
    torch.manual_seed(0)
    tokens, temperature = torch.randn(5, 3, 4), 0.3
    present = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 1]]).bool()
    x = (tokens / tokens.norm(dim=-1, keepdim=True)).numpy()
    pairs = []
    for a in range(3):
        for b in range(a + 1, 3):
            both = [i for i in range(5) if present[i, a] and present[i, b]]
            ways = []
            for one, other in ((a, b), (b, a)):
                ways.append(
                    np.mean(
                        [
                            -np.log(
                                np.exp(x[i, one] @ x[i, other] / temperature)
                                / sum(np.exp(x[i, one] @ x[j, other] / temperature) for j in both)
                            )
                            for i in both
                        ]
                    )
                )
            pairs.append(np.mean(ways))
    assert contrastive_loss(tokens, present, temperature=temperature).item() == pytest.approx(np.mean(pairs), abs=1e-5)


@pytest.mark.parametrize("present", [[[1, 0], [0, 1], [1, 0]], [[1, 1], [0, 0], [0, 1]]], ids=["no pair", "one patient"])
def test_contrast_without_a_pair_is_a_differentiable_zero(present):
    tokens = torch.randn(3, 2, 4, requires_grad=True)
    loss = contrastive_loss(tokens, torch.tensor(present).bool(), temperature=0.1)
    loss.backward()
    assert loss.item() == 0
    assert (tokens.grad == 0).all()
