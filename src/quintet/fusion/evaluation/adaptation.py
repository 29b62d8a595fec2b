"""Test-time training: a few steps of gradient descent on a patient's own self-supervised losses, then the prediction.

Every patient has its own copies of the adapted weights (torch.func maps over patients). The network itself never changes, and
results depend neither on the order of patients nor on the other patients in a batch. A patient whose loss does not fall keeps the
trained weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from quintet.fusion.model.encoders import RunningNorm
from quintet.fusion.model.losses import contrast_with_bank
from quintet.fusion.model.methods import DiffusionNoise
from quintet.fusion.model.networks import FusionNet
from quintet.params.fusion import FusionLossWeights, FusionTtt

NOISES = 4  # noise vectors per patient, the same in every step of gradient descent so that losses are comparable
NORMS = (nn.LayerNorm, RunningNorm)
Inputs = Sequence[Tensor]  # one patient's features, or volumes and vectors if the encoders adapt
State = dict[str, Tensor]


@dataclass(frozen=True)
class Adapted:
    scores: Tensor  # [P, N, outputs]
    adapted: Tensor  # [P] bool: the loss fell


class _Patient(nn.Module):
    """The module that torch.func calls with each patient's own weights."""

    def __init__(self, net: FusionNet, weights: FusionLossWeights, temperature: float, *, steps: int, encoded: bool) -> None:
        super().__init__()
        self.net, self.weights, self.temperature, self.steps, self.encoded = net, weights, temperature, steps, encoded

    def forward(self, inputs: Inputs, present: Tensor, time: Tensor, noise: Tensor, start: Tensor | None) -> Tensor:
        """The loss or, with `start` (noise `[N, D]`), the scores `[N, outputs]`."""
        net, present, inputs = self.net, present[None], [x[None] for x in inputs]
        features = inputs if self.encoded else net.encoders.features(inputs[0], inputs[1:], present)
        tokens = net.tokens(features, present)
        if start is not None:
            return net(tokens, present, start[None], steps=self.steps)[:, 0]
        x0 = net.fuse.target(tokens, present) if net.method == "diffusion" else tokens[:, 0]
        count = len(time) if net.method == "diffusion" else 1
        output = net.training_output(
            [f.expand(count, -1) for f in features],
            tokens.expand(count, -1, -1),
            present.expand(count, -1),
            present.expand(count, -1),
            x0.expand(count, -1),
            DiffusionNoise(time, noise),
        )
        contrast = contrast_with_bank(tokens[0], present[0], net.bank, net.known, temperature=self.temperature)
        w = self.weights
        return w.diffusion * output.diffusion_loss + w.reconstruction * output.reconstruction_loss + w.contrastive * contrast


def adapted_names(net: FusionNet, parameters: str) -> list[str]:
    """Names of the weights that adapt. `norm`: those of normalisation layers; `fusion`: projections, fusion, decoders; `all`: all
    but the predictor's, for which the self-supervised losses have no gradient."""
    names = [name for name, _ in net.named_parameters() if not name.startswith("predict.")]
    if parameters == "fusion":
        return [name for name in names if name.startswith(("encoders.project.", "fuse.", "decode."))]
    if parameters == "norm":
        norms = tuple(f"{name}." for name, module in net.named_modules() if isinstance(module, NORMS))
        return [name for name in names if name.startswith(norms)]
    return names


def adapt(
    net: FusionNet,
    inputs: Inputs,
    present: Tensor,
    start: Tensor,
    *,
    ttt: FusionTtt,
    weights: FusionLossWeights,
    temperature: float,
    sampling_steps: int,
    seeds: Sequence[int],
) -> Adapted:
    """Adapt to each of P patients and predict. `inputs`: features of each modality `[P, F_k]` (ttt.parameters=fusion), else
    volumes `[P, M, S, S, S]` and vectors `[P, W]`; `present` `[P, K]`; `start`: noise `[P, N, D]`; `seeds`: one per
    patient."""
    net.eval()
    encoded = ttt.parameters == "fusion"
    patient = _Patient(net, weights, temperature, steps=sampling_steps, encoded=encoded)
    names = [f"net.{name}" for name in adapted_names(net, ttt.parameters)]
    tensors = dict(patient.named_parameters()) | dict(patient.named_buffers())
    fixed = {name: value.detach() for name, value in tensors.items() if name not in names}
    # encoders select present patients by index, which vmap cannot do, so they are adapted one patient at a time
    over_patients: Callable[..., Any] = vmap if encoded else _loop

    def loss(state: State, *args: Any) -> Tensor:
        return functional_call(patient, (fixed, state), (*args, None))

    def predict(state: State, *args: Any) -> Tensor:
        return functional_call(patient, (fixed, state), args)

    before = {name: tensors[name].detach().expand(len(present), *tensors[name].shape).clone() for name in names}
    state, args = before, (tuple(inputs), present, *_diffusion_noise(net, seeds, start))
    first = None
    for _ in range(ttt.steps):
        gradient, value = over_patients(grad_and_value(loss))(state, *args)
        first = value if first is None else first
        state = {name: value - ttt.rate * gradient[name] for name, value in state.items()}
    with torch.no_grad():
        if first is None:
            fell = torch.zeros(len(present), dtype=torch.bool, device=present.device)
        else:
            fell = over_patients(loss)(state, *args) < first  # False for NaN
        state = {name: torch.where(fell.view(-1, *[1] * (v.dim() - 1)), v, before[name]) for name, v in state.items()}
        scores = over_patients(predict)(state, *args, start)
    return Adapted(scores, fell)


def _diffusion_noise(net: FusionNet, seeds: Sequence[int], start: Tensor) -> tuple[Tensor, Tensor]:
    """Each patient's steps `[P, NOISES]` (one in each part of the schedule) and noise `[P, NOISES, D]`, by its seed alone."""
    steps = net.fuse.steps if net.method == "diffusion" else NOISES
    times, noises = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        times.append(((torch.arange(NOISES) + torch.rand(NOISES, generator=generator)) / NOISES * steps).long())
        noises.append(torch.randn(NOISES, start.shape[-1], generator=generator))
    return torch.stack(times).to(start.device), torch.stack(noises).to(start.device)


def _loop(function: Callable[..., Any]) -> Callable[..., Any]:
    """Like vmap over the first axis, but one row at a time."""
    from torch.utils._pytree import tree_map

    def mapped(*inputs: Any) -> Any:
        count = len(next(iter(inputs[0].values())))
        rows = [function(*(tree_map(lambda x, i=i: x[i], part) for part in inputs)) for i in range(count)]
        return tree_map(lambda *x: torch.stack(x), *rows)

    return mapped
