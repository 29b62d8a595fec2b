"""Test-time training: each of a patient's own modalities is withheld and reconstructed from the others, and a few steps of
gradient descent make them agree; then comes the prediction.

What adapts is a shift of each modality's features, the bias of their normalisation (adapting normalisation layers: Wang et al.
2021, arXiv 2006.10726). Every patient has its own shift (torch.func maps over patients). The network itself never changes, and
results depend neither on the order of patients nor on the other patients in a batch.

A patient keeps the trained weights unless the loss falls on noise that was not adapted to, and the prediction does not become
more certain. Modalities that were made to agree say the same thing twice, so that certainty rises where nothing was learnt
(docs/fusion.md); methods that minimise the entropy (Wang et al. 2021; EATA, Niu et al. 2022, arXiv 2204.02610; SAR, Niu et al.
2023, arXiv 2302.12400) would reward that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from quintet.fusion.model.losses import standardised
from quintet.fusion.model.networks import FusionNet

NOISES = 4  # noise vectors per patient, the same in every step of gradient descent so that losses are comparable


@dataclass(frozen=True)
class Adapted:
    scores: Tensor  # [P, N, outputs]
    adapted: Tensor  # [P] bool


class _Patient(nn.Module):
    """The module that torch.func calls with each patient's own shift."""

    def __init__(self, net: FusionNet, *, steps: int) -> None:
        super().__init__()
        self.net, self.steps = net, steps
        self.shift = nn.ParameterList([nn.Parameter(torch.zeros(width)) for width in net.encoders.widths])

    def forward(self, features: Sequence[Tensor], present: Tensor, noise: Tensor, start: Tensor | None) -> Tensor:
        """Features `[F_k]`, `present` `[K]`, noise `[M, D]` -> the loss or, with `start` (noise `[N, D]`), the scores `[N,
        outputs]`."""
        net, count = self.net, len(present)
        shifted = [((f + shift) * present[k])[None] for k, (f, shift) in enumerate(zip(features, self.shift, strict=True))]
        tokens = net.tokens(shifted, present[None])
        if start is not None:
            return net(tokens, present[None], start[None], steps=self.steps)[:, 0]
        others = present & ~torch.eye(count, dtype=torch.bool, device=present.device)
        fused = net.first_estimate(tokens.expand(count, -1, -1), others, noise)  # [M, K, D]
        errors = [(decode(fused[:, k]) - standardised(shifted[k])).square().mean() for k, decode in enumerate(net.decode)]
        usable = (present & others.any(1)).float()
        return (torch.stack(errors) * usable).sum() / usable.sum().clamp_min(1)


def adapt(
    net: FusionNet,
    features: Sequence[Tensor],
    present: Tensor,
    start: Tensor,
    *,
    steps: int,
    rate: float,
    sampling_steps: int,
    seeds: Sequence[int],
) -> Adapted:
    """Adapt to each of P patients and predict. `features`: of each modality `[P, F_k]`; `present` `[P, K]`; `start`: noise
    `[P, N, D]`; `seeds`: one per patient. A network with one output, a risk, has no certainty to guard."""
    patient = _Patient(net.eval(), steps=sampling_steps).to(start.device)
    tensors = dict(patient.named_parameters()) | dict(patient.named_buffers())
    fixed = {name: value.detach() for name, value in tensors.items() if not name.startswith("shift.")}
    count, inputs = len(present), (tuple(features), present)
    noise, unseen = (_noise(seeds, stream, start) for stream in (0, 1))

    def call(state: dict[str, Tensor], *args: Tensor | tuple[Tensor, ...] | None) -> Tensor:
        out: Tensor = functional_call(patient, (fixed, state), args)
        return out

    def loss(state: dict[str, Tensor], *args: Tensor | tuple[Tensor, ...]) -> Tensor:
        return call(state, *args, None)

    before = {name: v.detach().expand(count, *v.shape).clone() for name, v in tensors.items() if name not in fixed}
    state = before
    for _ in range(steps):
        gradient = vmap(grad(loss))(state, *inputs, noise)
        state = {name: value - rate * gradient[name] for name, value in state.items()}
    with torch.no_grad():
        plain, scores = (vmap(call)(s, *inputs, noise, start) for s in (before, state))
        better = vmap(loss)(state, *inputs, unseen) < vmap(loss)(before, *inputs, unseen)  # False for NaN
        if net.outputs > 1:
            better &= _entropy(scores) >= _entropy(plain)
    return Adapted(torch.where(better[:, None, None], scores, plain), better)


def _entropy(scores: Tensor) -> Tensor:
    """Of the mean probabilities over draws; `[P, N, classes]` -> `[P]`."""
    return torch.special.entr(scores.softmax(-1).mean(1)).sum(-1)


def _noise(seeds: Sequence[int], stream: int, start: Tensor) -> Tensor:
    """Each patient's noise `[P, NOISES, D]`, by its seed alone."""
    generators = [torch.Generator().manual_seed(2 * seed + stream) for seed in seeds]
    return torch.stack([torch.randn(NOISES, start.shape[-1], generator=g) for g in generators]).to(start.device)
