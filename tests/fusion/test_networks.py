"""Encoders, fusion methods, schedules and samplers against formulas and diffusers, collapse."""

import itertools
from typing import get_args

import numpy as np
import pytest
import torch

from quintet.fusion.model.encoders import ENCODERS, Encoders, ImageEncoder, Reduction, RunningNorm
from quintet.fusion.model.imputation import RIDGE
from quintet.fusion.model.methods import METHODS, DiffusionNoise, masked_mean
from quintet.fusion.model.networks import FusionNet
from quintet.fusion.model.noise import shared_noise
from quintet.params import FusionConfig
from quintet.params.fusion import IMPUTES, FusionTraining


def make(method="diffusion", *, target="mean", predicts="sample", schedule="cosine", steps=1000, images=2, outputs=2, hidden=16):
    torch.manual_seed(0)
    return FusionNet(
        method=method,
        images=[{"encoder": "small", "width": 8}] * images,
        vectors=[[5, 8]],
        outputs=outputs,
        hidden=hidden,
        heads=2,
        predictor_units=[8],
        dropout=0.0,
        recompute=False,
        token_size=0,
        flow={"width": 16, "layers": 1, "iterations": 5, "batch_size": 8, "rate": 0.01, "weight_decay": 0.0},
        diffusion={"target": target, "predicts": predicts, "schedule": schedule, "steps": steps, "layers": 1},
    ).eval()


def batch(count=6, images=2, side=10):
    torch.manual_seed(1)
    present = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 1], [1, 0, 0], [1, 1, 0]]).bool()[:count]
    return torch.rand(count, images, side, side, side), torch.randn(count, 5), present


def tokens_of(net, volumes, clinical, present):
    return net.encoders.tokens(net.encoders.features(volumes, [clinical], present), present)


def test_registry_and_params_have_the_same_names():
    assert set(METHODS) == set(get_args(FusionConfig.model_fields["method"].annotation))
    assert set(ENCODERS) == set(get_args(FusionTraining.model_fields["encoder"].annotation))


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_do_not_mix_patients(name):
    """In evaluation mode a patient's features do not depend on the batch. In training no gradient flows from one patient to
    another, and a batch of one works."""
    torch.manual_seed(0)
    net = ImageEncoder(name, 8).train()
    x = torch.rand(3, 1, 16, 16, 16, requires_grad=True)
    features = net(x)
    assert features.shape == (3, net.features)
    features[0].square().sum().backward()
    assert x.grad[0].any()
    assert not x.grad[1:].any()
    net(x[:1])
    net.eval()
    torch.testing.assert_close(net(x[1:2]), net(x)[1:2], atol=1e-3, rtol=5e-3)  # the same sums in another order
    assert not any(isinstance(m, torch.nn.BatchNorm3d) for m in net.modules())


def test_each_encoder_sees_the_channels_of_its_modality():
    """An image with two channels between two with one: its encoder has the weights of both, and no other sees them."""
    widths = {"encoder": "small", "width": 8}
    images = [widths, widths | {"channels": 2}, widths]
    torch.manual_seed(0)
    encoders = Encoders(images=images, vectors=[[5, 8]], hidden=16, dropout=0.0, recompute=False).eval()
    volumes, clinical, present = torch.rand(2, 4, 10, 10, 10), torch.randn(2, 5), torch.ones(2, 4).bool()
    before = encoders.features(volumes, [clinical], present)
    for cube, modality in enumerate((0, 1, 1, 2)):
        changed = volumes.clone()
        changed[:, cube] = 0.5
        after = encoders.features(changed, [clinical], present)
        assert [not torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [k == modality for k in range(4)]


def test_feature_maps_have_channels_last():
    """Volumes with a single channel do not say which format they are in, so that the weights have to."""
    net, inner = ImageEncoder("small", 8), []
    net.net.layer1.register_forward_hook(lambda _module, _inputs, output: inner.append(output))
    net(torch.rand(2, 1, 24, 24, 24))
    assert inner[0].is_contiguous(memory_format=torch.channels_last_3d)


def test_running_norm_equals_batch_norm_with_the_same_statistics():
    torch.manual_seed(0)
    ours, theirs = RunningNorm(3), torch.nn.BatchNorm3d(3, momentum=None)
    batches = [torch.randn(5, 3, 2, 2, 2) * torch.tensor([1.0, 4, 9]).view(3, 1, 1, 1) + 2 for _ in range(8)]
    for x in batches:
        ours(x)
        theirs(x)
    torch.testing.assert_close(ours.mean, theirs.running_mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.eval()(batches[0]), theirs.eval()(batches[0]), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_missing_modalities_have_no_influence_and_no_gradient(method):
    net = make(method)
    volumes, clinical, present = batch()
    start = shared_noise(3, net.noise_size).expand(6, -1, -1)

    def scores():
        return net(tokens_of(net, volumes, clinical, present), present, start, steps=3)

    before = scores()
    assert before.shape == (3 if net.noise_size else 1, 6, 2)
    volumes[1, 1], volumes[2, 0], clinical[2] = 7.0, -3.0, 9.0
    torch.testing.assert_close(scores(), before, atol=1e-6, rtol=0)
    volumes.requires_grad_(True)
    scores().square().sum().backward()
    assert (volumes.grad[1, 1] == 0).all()
    assert (volumes.grad[1, 0] != 0).any()


@pytest.mark.parametrize("method", METHODS)
def test_other_patients_and_their_order_do_not_matter(method):
    net = make(method)
    volumes, clinical, present = batch()
    tokens, start = tokens_of(net, volumes, clinical, present), shared_noise(2, net.noise_size)
    whole = net(tokens, present, start.expand(6, -1, -1), steps=3)
    order = [3, 0, 5]
    some = net(tokens[order], present[order], start.expand(3, -1, -1), steps=3)
    torch.testing.assert_close(some, whole[:, order], atol=1e-5, rtol=1e-4)


def test_late_adds_up_what_each_modality_says_beyond_the_frequency_of_the_classes():
    net, prior = make("late"), torch.tensor([0.7, 0.3])
    net.base.copy_(prior.log())
    volumes, clinical, present = batch()
    tokens = tokens_of(net, volumes, clinical, present)
    p = net(tokens, present)[0].softmax(-1)
    for row in range(6):
        single = [net.predict[k](tokens[row, k]).diff() - prior.log().diff() for k in range(3) if present[row, k]]
        torch.testing.assert_close(p[row].logit()[1:], prior.log().diff() + torch.stack(single).sum(0))
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    torch.testing.assert_close(net(tokens[:1], nothing)[0].softmax(-1)[0], prior)
    only = torch.tensor([[True, False, False]])
    torch.testing.assert_close(net(tokens[:1], only)[0].softmax(-1)[0], net.predict[0](tokens[0, 0]).softmax(-1))


def test_concat_gets_zeros_for_missing_modalities_and_which_are_present():
    net = make("concat")
    volumes, clinical, present = batch()
    tokens = tokens_of(net, volumes, clinical, torch.ones_like(present))
    by_hand = net.scores(net.fuse.join(torch.cat([(tokens * present[..., None]).reshape(6, -1), present.float()], 1)))
    torch.testing.assert_close(net(tokens, present)[0], by_hand)


def closed_form(schedule, steps):
    """alpha-bar by the papers: linear betas from 1e-4 to 0.02 (Ho et al. 2020), cosine with offset 0.008 (Nichol and Dhariwal
    2021)."""
    if schedule == "linear":
        return np.cumprod(1 - np.linspace(1e-4, 0.02, steps))
    at = lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2  # noqa: E731
    return np.cumprod([1 - min(1 - at((i + 1) / steps) / at(i / steps), 0.999) for i in range(steps)])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedule_by_its_formula(schedule):
    fuse = make(schedule=schedule).fuse
    assert fuse.signal.numpy() == pytest.approx(closed_form(schedule, 1000), abs=1e-5)
    x0, noise, time = torch.randn(5, 16), torch.randn(5, 16), torch.tensor([0, 1, 250, 700, 999])
    ours = fuse.signal[time][:, None].sqrt() * x0 + (1 - fuse.signal[time][:, None]).sqrt() * noise
    torch.testing.assert_close(ours, fuse.scheduler().add_noise(x0, noise, time), atol=1e-5, rtol=0)


@pytest.mark.parametrize("predicts", ["velocity", "sample"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_sampler_by_its_formula(schedule, predicts):
    """DDIM without noise (Song et al. 2021, equation 12), in float64 with a loop, from the last step on."""
    net = make(schedule=schedule, predicts=predicts, target="unguarded")
    tokens, present, noise = torch.randn(4, 3, 16), torch.ones(4, 3).bool(), torch.randn(4, 16)
    with torch.no_grad():
        found = net.fuse.sample(tokens, present, noise, steps=5)
        signal, condition, x = closed_form(schedule, 1000), net.fuse.condition(masked_mean(tokens, present)), noise.double()
        for time in range(999, -1, -200):
            output = net.fuse.denoise(x.float(), torch.full((4,), time), condition).double()
            now, after = signal[time], signal[time - 200] if time >= 200 else 1.0
            x0 = output if predicts == "sample" else np.sqrt(now) * x - np.sqrt(1 - now) * output
            eps = (x - np.sqrt(now) * x0) / np.sqrt(1 - now)
            x = np.sqrt(after) * x0 + np.sqrt(1 - after) * eps
    torch.testing.assert_close(found.double(), x, atol=1e-4 * float(x.abs().max()), rtol=0)


@pytest.mark.parametrize("predicts", ["velocity", "sample"])
def test_one_step_with_a_perfect_denoiser_returns_the_target(predicts, monkeypatch):
    net = make(predicts=predicts)
    x0 = net.fuse.scaled(torch.randn(4, 16))
    noise = DiffusionNoise(torch.tensor([0, 100, 500, 999]), torch.randn(4, 16))
    signal = net.fuse.signal[noise.time][:, None]
    velocity = signal.sqrt() * noise.noise - (1 - signal).sqrt() * x0
    monkeypatch.setattr(net.fuse.denoise, "forward", lambda *_: x0 if predicts == "sample" else velocity)
    estimate, loss = net.fuse.one_step(torch.randn(4, 3, 16), torch.ones(4, 3).bool(), x0, noise)
    torch.testing.assert_close(estimate, x0, atol=1e-3, rtol=0)
    assert (loss < 1e-9).all()


def test_no_gradient_flows_into_the_target():
    volumes, clinical, present = batch()
    for target, flows in (("mean", False), ("unguarded", True)):
        net = make(target=target)
        x0 = net.fuse.target(tokens_of(net, volumes, clinical, present), present)
        assert x0.requires_grad == flows


def feature_variance(target: str, steps: int = 100) -> float:
    """Variance of the fused target between patients: mean over the second half of a training on the diffusion loss alone."""
    net = make(target=target).train()
    volumes, clinical, present = batch()
    everything = torch.ones_like(present)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    found = []
    for step in range(steps):
        torch.manual_seed(step)
        tokens = tokens_of(net, volumes, clinical, everything)
        x0 = net.fuse.target(tokens, everything)
        found.append(x0.detach().var(0, correction=0).mean().item())
        noise = DiffusionNoise(torch.randint(1000, (6,)), torch.randn(6, 16))
        _, loss = net.fuse.one_step(tokens, present, x0, noise)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    return float(np.mean(found[steps // 2 :]))


def test_the_target_collapses_if_gradient_flows_into_it():
    """As the reference describes it, the loss is lowest if all patients shrink to one point; ours must stay far above that. The
    mean of many steps is tested, because a single step depends on the CPU. (On this loss alone, with which we never train, our
    target shrinks as well, but slowly: its variance is 0.04 to 0.9 after 300 steps.)"""
    from quintet.fusion.model.module import COLLAPSED

    unguarded, guarded = feature_variance("unguarded"), feature_variance("mean")
    assert unguarded < COLLAPSED
    assert guarded > max(2 * COLLAPSED, 10 * unguarded)


def test_gradient_checkpointing_changes_nothing():
    """Equal gradients, and running statistics that count a batch once."""
    plain, saving = make("attention"), make("attention")
    saving.encoders.recompute = True
    volumes, clinical, present = batch()
    grads = []
    for net in (plain, saving):
        net.train()
        net(tokens_of(net, volumes, clinical, present), present).square().sum().backward()
        grads.append([p.grad for p in net.encoders.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 20
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
    for name, value in plain.encoders.named_buffers():
        assert torch.equal(value, dict(saving.encoders.named_buffers())[name]), name
    assert plain.encoders.images[0].net.bn1.seen == 1


def correlated(count=400, seed=0):
    """Tokens `[N, 3, 1]` whose first two are nearly equal, some of them missing."""
    torch.manual_seed(seed)
    first = torch.randn(count, 1)
    tokens = torch.stack([first, first + 0.3 * torch.randn(count, 1), torch.randn(count, 1)], 1)
    present = torch.rand(count, 3) < 0.8
    return tokens * present[..., None], present


def imputation(method, **changes):
    torch.manual_seed(0)
    flow = {"width": 32, "layers": 2, "iterations": 1000, "batch_size": 128, "rate": 0.005, "weight_decay": 0.0} | changes
    return METHODS[method](hidden=1, count=3, flow=flow)


def completions(method, kept, *, draws=64, **changes):
    """Of 200 new patients with all tokens."""
    fuse = imputation(method, **changes)
    fuse.fit(*correlated())
    tokens, mask = correlated(200, seed=1)[0], torch.tensor(kept).expand(200, 3)
    noise = shared_noise(draws, 3).expand(200, -1, -1) if fuse.noise_size else None
    with torch.no_grad():
        return tokens, fuse.complete(tokens, mask, noise, steps=8)


def test_few_steps_of_the_flow_keep_the_variance():
    """The exact velocity of a normal distribution with variance 0.69: Euler's rule gives 0.50 with as many evaluations."""

    class Exact(torch.nn.Module):
        def forward(self, x, time, kept, known):
            t = time[:, None, None]
            return x * (t * 0.69 - (1 - t)) / ((1 - t) ** 2 + t**2 * 0.69)

    fuse = imputation("flow")
    fuse.velocity = Exact()
    noise = torch.randn(200, 100, 3, generator=torch.Generator().manual_seed(0))
    drawn = fuse.estimate(torch.zeros(200, 3, 1), torch.zeros(200, 3, dtype=torch.bool), noise, steps=4)
    assert float(drawn.var()) == pytest.approx(0.69 * float(noise.var()), rel=0.02)


@pytest.mark.parametrize("method", IMPUTES)
def test_completions_keep_what_is_known(method):
    tokens, found = completions(method, [True, False, True], iterations=5)
    assert found.shape == (64 if imputation(method).noise_size else 1, 200, 3, 1)
    assert torch.equal(found[:, :, [0, 2]], tokens[:, [0, 2]].expand_as(found[:, :, [0, 2]]))


def test_ridge_is_the_regression_on_the_known_tokens():
    """EM on incomplete tokens finds the covariance of the complete ones."""
    fuse = imputation("ridge")
    fuse.fit(*correlated(4000))
    expected = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.09, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(fuse.covariance, expected, atol=0.08, rtol=0)
    tokens, found = completions("ridge", [True, False, True])
    torch.testing.assert_close(found[0, :, 1], tokens[:, 0] / (1 + RIDGE), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("method", ["gaussian", "flow"])
def test_draws_have_the_conditional_distribution(method):
    """Given the first token, the second one has its value as mean and an SD of 0.3; given the third alone, an SD of about 1."""
    tokens, near = completions(method, [True, False, True])
    present = tokens[:, 0, 0] != 0
    error = (near[:, :, 1, 0].mean(0) - tokens[:, 0, 0])[present]
    assert error.abs().mean() < 0.3
    assert near[:, :, 1, 0].std(0)[present].mean().item() == pytest.approx(0.4, abs=0.15)
    _, far = completions(method, [False, False, True])
    assert far[:, :, 1, 0].std(0).mean().item() == pytest.approx(1.0, abs=0.2)
    assert np.corrcoef(far[:, 0, :2, 0].T)[0, 1] > 0.8  # missing tokens are drawn together


@pytest.mark.parametrize("method", ["gaussian", "flow"])
def test_the_spread_is_set_so_that_intervals_cover_their_share(method):
    """Draws that were made too much alike, or too different, are spread until 80 % of new patients' tokens are covered."""
    fuse = imputation(method)
    fuse.fit(*correlated())
    tokens, present = correlated(400, seed=1)
    tokens[:, 1] += 0.5 * torch.randn(400, 1) * present[:, 1, None]  # new patients are noisier
    fuse.calibrate(tokens, present, steps=8)
    assert fuse.spread > 1
    complete = tokens[present.all(1)]
    covered = []
    for known in itertools.product((False, True), repeat=3):
        if 0 < sum(known) < 3:
            mask = torch.tensor(known)
            noise = shared_noise(64, 3).expand(len(complete), -1, -1)
            with torch.no_grad():
                drawn = fuse.complete(complete, mask.expand(len(complete), -1), noise, steps=8)[:, :, ~mask].flatten(1)
            low, high = np.quantile(drawn.numpy(), [0.1, 0.9], axis=0, method="weibull")
            truth = complete[:, ~mask].flatten().numpy()
            covered.append((low <= truth) & (truth <= high))
    assert np.concatenate(covered).mean() == pytest.approx(0.8, abs=0.02)
    before = fuse.spread.clone()
    fuse.calibrate(tokens[:10], present[:10], steps=8)  # too few patients
    assert fuse.spread == before


def test_shaspec_uses_the_shared_features_of_what_is_there():
    """A missing modality's token has no influence; with one modality the others get its shared features."""
    torch.manual_seed(0)
    fuse = METHODS["shaspec"](hidden=2, count=3, dropout=0.0)
    tokens, present = torch.randn(4, 3, 2), torch.tensor([1, 0, 1]).bool().expand(4, 3)
    changed = tokens.clone()
    changed[:, 1] = 9.0
    with torch.no_grad():
        assert torch.equal(fuse(tokens, present), fuse(changed, present))
        single = fuse(tokens, torch.tensor([0, 1, 0]).bool().expand(4, 3)).unflatten(1, (3, -1))
        torch.testing.assert_close(single[:, 0], fuse.shared(tokens[:, 1]))
        assert torch.equal(single[:, 0], single[:, 2])
    optimizer = torch.optim.Adam(fuse.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        loss = fuse.auxiliary(tokens, present)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_flow_that_is_fitted_again_is_the_same():
    first, second = (completions("flow", [True, False, False], iterations=20)[1] for _ in range(2))
    assert torch.equal(first, second)


def test_reduced_tokens_are_principal_components():
    torch.manual_seed(0)
    tokens, present = torch.randn(300, 2, 5) @ torch.diag(torch.tensor([5.0, 2, 1, 1, 1])) + 3, torch.rand(300, 2) < 0.7
    reduce = Reduction(2, 5, 2)
    reduce.fit(tokens, present)
    found = reduce(tokens, present)
    assert (found[~present] == 0).all()
    for k in range(2):
        own = found[present[:, k], k]
        torch.testing.assert_close(own.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
        torch.testing.assert_close(own.T @ own / len(own), torch.eye(2), atol=1e-4, rtol=0)
        assert abs(np.corrcoef(own[:, 0], tokens[present[:, k], k, 0])[0, 1]) > 0.99
