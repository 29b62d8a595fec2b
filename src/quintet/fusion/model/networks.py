"""The whole network: tokens `[B, K, D]` (encoders.py) -> fused vector `[B, D]` (methods.py) -> scores `[B, outputs]`."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quintet.fusion.model.encoders import Encoders, mlp
from quintet.fusion.model.losses import reconstruction_loss
from quintet.fusion.model.methods import METHODS, DiffusionNoise, masked_mean


def patient_seeds(names: Sequence[str]) -> list[int]:
    """One seed per patient, the same on every machine: a patient's random numbers do not depend on the other patients."""
    return [int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "little") for name in names]


def initial_noise(names: Sequence[str], samples: int, size: int) -> Tensor:
    """`[P, samples, size]`: where each patient's sampling starts."""
    generators = [torch.Generator().manual_seed(seed) for seed in patient_seeds(names)]
    return torch.stack([torch.randn(samples, size, generator=generator) for generator in generators])


class TrainingOutput(NamedTuple):
    fused: Tensor  # [B, D]
    diffusion_loss: Tensor
    reconstruction_loss: Tensor


class FusionNet(nn.Module):
    """`outputs`: number of classes, or 1 for a risk. Decoders reconstruct each modality's features from the fused vector."""

    bank: Tensor
    known: Tensor

    def __init__(
        self,
        *,
        method: str,
        images: int,
        vectors: Sequence[int],
        outputs: int,
        encoder: str,
        width: int,
        clinical_units: Sequence[int],
        hidden: int,
        heads: int,
        predictor_units: Sequence[int],
        dropout: float,
        recompute: bool,
        diffusion: dict[str, Any],
        bank: int,
    ) -> None:
        super().__init__()
        self.method, self.outputs, count = method, outputs, images + len(vectors)
        # tokens of training patients, against which test-time training contrasts a patient
        self.register_buffer("bank", torch.zeros(bank, count, hidden))
        self.register_buffer("known", torch.zeros(bank, count, dtype=torch.bool))
        self.encoders = Encoders(
            images=images,
            vectors=vectors,
            encoder=encoder,
            width=width,
            clinical_units=clinical_units,
            hidden=hidden,
            dropout=dropout,
            recompute=recompute,
        )
        self.fuse: Any = METHODS[method](hidden=hidden, heads=heads, dropout=dropout, count=count, **diffusion)
        self.predict = nn.ModuleList(
            [mlp([hidden, *predictor_units, outputs], dropout, last=True) for _ in range(count if method == "late" else 1)]
        )
        widths = self.encoders.widths if method in ("attention", "diffusion") else []
        self.decode = nn.ModuleList([mlp([hidden, hidden, width], 0.0, last=True) for width in widths])

    def scores(self, fused: Tensor) -> Tensor:
        """`[..., D]` -> `[..., outputs]`: logits of the classes, or the log hazard."""
        return self.predict[0](fused).float()

    def per_modality_scores(self, tokens: Tensor) -> Tensor:
        """Late fusion: the scores of each modality's own predictor, `[B, K, outputs]`."""
        return torch.stack([predict(tokens[:, k]) for k, predict in enumerate(self.predict)], 1).float()

    def forward(self, tokens: Tensor, present: Tensor, noise: Tensor | None = None, *, steps: int = 20) -> Tensor:
        """Scores `[N, B, outputs]` of N samples (1 for methods without sampling); the diffusion starts from `noise` `[B, N,
        D]`."""
        if self.method == "late":
            scores = self.per_modality_scores(tokens)
            mean = masked_mean(scores.log_softmax(-1).exp() if self.outputs > 1 else scores, present)
            return (mean.clamp_min(1e-12).log() if self.outputs > 1 else mean)[None]
        if self.method != "diffusion":
            return self.scores(self.fuse(tokens, present))[None]
        if noise is None:
            raise ValueError("the diffusion needs noise [B, N, D] to start from")
        return self.scores(self.sample(tokens, present, noise, steps=steps))

    def sample(self, tokens: Tensor, present: Tensor, noise: Tensor, *, steps: int) -> Tensor:
        """Fused vectors `[N, B, D]` of the diffusion, one for each of N noise vectors."""
        count = noise.shape[1]
        fused = self.fuse.sample(
            tokens.repeat(count, 1, 1), present.repeat(count, 1), noise.transpose(0, 1).flatten(0, 1), steps=steps
        )
        return fused.unflatten(0, (count, len(tokens)))

    def fused(self, tokens: Tensor, present: Tensor, noise: Tensor, *, steps: int) -> Tensor:
        """Fused vectors `[N, B, D]` of attention (N = 1) or diffusion."""
        if self.method == "diffusion":
            return self.sample(tokens, present, noise, steps=steps)
        return self.fuse(tokens, present)[None]

    def training_output(
        self, features: Sequence[Tensor], tokens: Tensor, present: Tensor, kept: Tensor, x0: Tensor, noise: DiffusionNoise
    ) -> TrainingOutput:
        """One training pass of attention or diffusion: from the `kept` modalities to the fused vector, from which the features of
        all `present` modalities are reconstructed."""
        row_losses = torch.zeros(len(tokens), device=tokens.device)
        if self.method == "diffusion":
            _, row_losses = self.fuse.one_step(tokens, kept, x0, noise)
            # The predictor learns from the estimate at the step where sampling starts: at less noisy steps the input contains the
            # target, into which no gradient flows, so that the encoders would learn little.
            last = torch.full_like(noise.time, self.fuse.steps - 1)
            fused, _ = self.fuse.one_step(tokens, kept, x0, DiffusionNoise(last, noise.noise))
        else:
            fused = self.fuse(tokens * kept[..., None], kept)
        reconstruction = reconstruction_loss([decode(fused) for decode in self.decode], features, present)
        return TrainingOutput(fused, row_losses.mean(), reconstruction)
