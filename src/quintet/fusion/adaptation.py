"""Test-time training: a few steps of gradient descent on one patient's own self-supervised losses, then the prediction, then
everything forgotten.

Every patient has copies of the adapted weights (torch.func maps over patients), so the model is never written to, and results
depend neither on the order of patients nor on who else is in the batch. A patient whose loss does not fall keeps the trained
weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from quintet.fusion.encoders import RunningNorm
from quintet.fusion.losses import contrast_with_bank
from quintet.fusion.networks import Draw, FusionNet
from quintet.params.fusion import FusionLossWeights, FusionTtt

DRAWS = 4  # of the diffusion's step and noise; the same for every step of a patient, so that losses can be compared
NORMS = (nn.LayerNorm, RunningNorm)
Given = Sequence[Tensor]  # one patient's features, or volumes and clinical row where encoders adapt
State = dict[str, Tensor]


@dataclass(frozen=True)
class Outcome:
    scores: Tensor  # [P, N, outputs]
    adapted: Tensor  # [P] bool: the loss fell


class _Patient(nn.Module):
    """What torch.func calls with a patient's own weights."""

    def __init__(self, net: FusionNet, weights: FusionLossWeights, temperature: float, *, steps: int, encoded: bool) -> None:
        super().__init__()
        self.net, self.weights, self.temperature, self.steps, self.encoded = net, weights, temperature, steps, encoded

    def forward(self, given: Given, present: Tensor, time: Tensor, noise: Tensor, start: Tensor | None) -> Tensor:
        """The loss, or with `start` (noise `[N, D]`) the scores `[N, outputs]`."""
        net, present, given = self.net, present[None], [g[None] for g in given]
        features = given if self.encoded else net.encoders.features(given[0], given[1], present)
        tokens = net.encoders.tokens(features, present)
        if start is not None:
            return net(tokens, present, start[None], steps=self.steps)[:, 0]
        x0 = net.fuse.target(tokens, present) if net.method == "diffusion" else tokens[:, 0]
        count = len(time) if net.method == "diffusion" else 1
        learnt = net.learn(
            [f.expand(count, -1) for f in features],
            tokens.expand(count, -1, -1),
            present.expand(count, -1),
            present.expand(count, -1),
            x0.expand(count, -1),
            Draw(time, noise),
        )
        contrast = contrast_with_bank(tokens[0], present[0], net.bank, net.known, temperature=self.temperature)
        w = self.weights
        return w.diffusion * learnt.diffusion + w.reconstruction * learnt.reconstruction + w.contrastive * contrast


def adapted_names(net: FusionNet, parameters: str) -> list[str]:
    """Which weights adapt. `norm`: of the normalisation layers; `fusion`: projections, fusion, decoders; `all`: everything but
    the predictor, which no self-supervised loss reaches."""
    names = [name for name, _ in net.named_parameters() if not name.startswith("predict.")]
    if parameters == "fusion":
        return [name for name in names if name.startswith(("encoders.project.", "fuse.", "decode."))]
    if parameters == "norm":
        norms = tuple(f"{name}." for name, module in net.named_modules() if isinstance(module, NORMS))
        return [name for name in names if name.startswith(norms)]
    return names


def adapt(
    net: FusionNet,
    given: Given,
    present: Tensor,
    start: Tensor,
    *,
    how: FusionTtt,
    weights: FusionLossWeights,
    temperature: float,
    sampling_steps: int,
    seeds: Sequence[int],
) -> Outcome:
    """Adapt and predict P patients. `given`: features of each modality `[P, F_k]` (how.parameters=fusion), else volumes
    `[P, M, S, S, S]` and clinical rows; `present` `[P, K]`; `start` `[P, N, D]` noise; `seeds`: of each patient's draws."""
    net.eval()
    encoded = how.parameters == "fusion"
    patient = _Patient(net, weights, temperature, steps=sampling_steps, encoded=encoded)
    names = [f"net.{name}" for name in adapted_names(net, how.parameters)]
    own = dict(patient.named_parameters()) | dict(patient.named_buffers())
    fixed = {name: value.detach() for name, value in own.items() if name not in names}
    # encoders look at what is there by index, which vmap cannot: they adapt patient by patient
    over: Callable[..., Any] = vmap if encoded else _looped
    time, noise = _draws(net, seeds, start)

    def loss(state: State, *inputs: Any) -> Tensor:
        return functional_call(patient, (fixed, state), (*inputs, None))

    def predict(state: State, *inputs: Any) -> Tensor:
        return functional_call(patient, (fixed, state), inputs)

    before = {name: own[name].detach().expand(len(present), *own[name].shape).clone() for name in names}
    state, inputs = before, (tuple(given), present, time, noise)
    first = None
    for _ in range(how.steps):
        gradient, value = over(grad_and_value(loss))(state, *inputs)
        first = value if first is None else first
        state = {name: value - how.rate * gradient[name] for name, value in state.items()}
    with torch.no_grad():
        if first is None:
            fell = torch.zeros(len(present), dtype=torch.bool, device=present.device)
        else:
            fell = over(loss)(state, *inputs) < first  # NaN is no fall
        state = {name: torch.where(fell.view(-1, *[1] * (v.dim() - 1)), v, before[name]) for name, v in state.items()}
        scores = over(predict)(state, *inputs, start)
    return Outcome(scores, fell)


def _draws(net: FusionNet, seeds: Sequence[int], start: Tensor) -> tuple[Tensor, Tensor]:
    """Each patient's steps `[P, DRAWS]` (one in each part of the schedule) and noise `[P, DRAWS, D]`, by its seed alone."""
    steps = net.fuse.how["steps"] if net.method == "diffusion" else DRAWS
    times, noises = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        times.append(((torch.arange(DRAWS) + torch.rand(DRAWS, generator=generator)) / DRAWS * steps).long())
        noises.append(torch.randn(DRAWS, start.shape[-1], generator=generator))
    return torch.stack(times).to(start.device), torch.stack(noises).to(start.device)


def _looped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Like vmap over the first axis, one row after the other."""
    from torch.utils._pytree import tree_map

    def mapped(*inputs: Any) -> Any:
        count = len(next(iter(inputs[0].values())))
        rows = [function(*(tree_map(lambda x, i=i: x[i], part) for part in inputs)) for i in range(count)]
        return tree_map(lambda *x: torch.stack(x), *rows)

    return mapped
