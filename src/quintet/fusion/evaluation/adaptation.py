"""Test-time training: each of a patient's own modalities is withheld and reconstructed from the others, and a few steps of
gradient descent make them agree; then comes the prediction.

What adapts is a shift of each modality's features, the bias of their normalisation (adapting normalisation layers: Wang et al.
2021, arXiv 2006.10726). Every patient has its own shift. The network itself never changes, and results depend neither on the
order of patients nor on the other patients in a batch.

A patient keeps the trained weights unless the loss falls on noise that was not adapted to, and the prediction does not become
more certain. Modalities that were made to agree say the same thing twice, so that certainty rises where nothing was learnt
(docs/fusion.md); methods that minimise the entropy (Wang et al. 2021; EATA, Niu et al. 2022, arXiv 2204.02610; SAR, Niu et al.
2023, arXiv 2302.12400) would reward that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quintet.fusion.model.losses import standardised
from quintet.fusion.model.networks import FusionNet
from quintet.fusion.model.noise import shared_noise

NOISES = 4  # noise vectors, the same in every step of gradient descent so that losses are comparable


@dataclass(frozen=True)
class Adapted:
    scores: Tensor  # [P, N, outputs]
    adapted: Tensor  # [P] bool


def adapt(
    net: FusionNet,
    features: Sequence[Tensor],
    present: Tensor,
    start: Tensor,
    plain: Tensor,
    *,
    steps: int,
    rate: float,
    sampling_steps: int,
) -> Adapted:
    """Adapt to each of P patients and predict. `features`: of each modality `[P, F_k]`; `present` `[P, K]`; `start`: noise
    `[P, N, D]`; `plain`: scores of the trained weights `[P, N, outputs]`. A network with one output, a risk, has no certainty to
    guard."""
    if not steps:
        return Adapted(plain, torch.zeros(len(plain), dtype=torch.bool, device=plain.device))
    noise, unseen = shared_noise(2 * NOISES, start.shape[-1]).to(start).expand(len(start), -1, -1).split(NOISES, 1)
    shift = [torch.zeros_like(f) for f in features]
    for _ in range(steps):
        shift = [s.detach().requires_grad_() for s in shift]
        # a patient's shift has no effect on the others' losses, so that the gradient of their sum is that of its own
        loss = _losses(net, _shifted(features, shift, present), present, noise).sum()
        shift = [s - rate * g for s, g in zip(shift, torch.autograd.grad(loss, shift), strict=True)]
    with torch.no_grad():
        moved = _shifted(features, shift, present)
        scores = net(net.tokens(moved, present), present, start, steps=sampling_steps).transpose(0, 1)
        better = _losses(net, moved, present, unseen) < _losses(net, features, present, unseen)  # False for NaN
        if net.outputs > 1:
            better &= _entropy(scores) >= _entropy(plain)
    return Adapted(torch.where(better[:, None, None], scores, plain), better)


def _shifted(features: Sequence[Tensor], shift: Sequence[Tensor], present: Tensor) -> list[Tensor]:
    return [(f + s) * present[:, k, None] for k, (f, s) in enumerate(zip(features, shift, strict=True))]


def _losses(net: FusionNet, features: Sequence[Tensor], present: Tensor, noise: Tensor) -> Tensor:
    """The mean error of a patient's modalities, each reconstructed from its others, `[P]`; 0 for a patient with a single one.
    `noise` `[P, M, D]`."""
    patient, withheld = (present & (present.sum(1, keepdim=True) > 1)).nonzero(as_tuple=True)
    others = present[patient].clone()
    others[torch.arange(len(patient)), withheld] = False
    fused = net.first_estimate(net.tokens(features, present)[patient], others, noise[patient].transpose(0, 1))  # [M, R, D]
    errors = torch.zeros_like(present, dtype=fused.dtype)
    for k, decode in enumerate(net.decode):
        rows = withheld == k
        error = (decode(fused[:, rows]) - standardised(features[k][patient[rows]])).square().mean((0, 2))
        errors = errors.index_put((patient[rows], withheld[rows]), error)
    return errors.sum(1) / present.sum(1).clamp_min(1)


def _entropy(scores: Tensor) -> Tensor:
    """Of the mean probabilities over draws; `[P, N, classes]` -> `[P]`."""
    return torch.special.entr(scores.softmax(-1).mean(1)).sum(-1)
