"""The whole network: tokens `[B, K, D]` (encoders.py) -> fused vectors `[N, B, F]` of N draws (methods.py, imputation.py) ->
scores `[N, B, outputs]`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quintet.fusion.model import imputation  # noqa: F401 (registers its methods)
from quintet.fusion.model.encoders import Encoders, Reduction, mlp
from quintet.fusion.model.losses import reconstruction_loss
from quintet.fusion.model.methods import METHODS, DiffusionNoise
from quintet.params.fusion import ADAPTS, LATE


class TrainingOutput(NamedTuple):
    fused: Tensor  # [B, D]
    diffusion_loss: Tensor
    reconstruction_loss: Tensor


class FusionNet(nn.Module):
    """`outputs`: number of classes, or 1 for a risk. `token_size`: principal components of the tokens of frozen encoders; 0:
    whole tokens, of encoders that are trained. The decoders of attention and diffusion reconstruct each modality's features from
    the fused vector."""

    sharpness: Tensor
    base: Tensor

    def __init__(
        self,
        *,
        method: str,
        images: Sequence[dict[str, Any]],
        vectors: Sequence[Sequence[int]],
        outputs: int,
        hidden: int,
        heads: int,
        predictor_units: Sequence[int],
        dropout: float,
        recompute: bool,
        diffusion: dict[str, Any],
        flow: dict[str, Any],
        token_size: int,
    ) -> None:
        super().__init__()
        self.method, self.outputs, count = method, outputs, len(images) + len(vectors)
        self.register_buffer("sharpness", torch.ones(()))  # factor of the scores, set on validation patients
        self.register_buffer("base", torch.zeros(count, outputs))  # late fusion: scores of a modality that says nothing
        self.encoders = Encoders(
            images=images,
            vectors=vectors,
            hidden=hidden,
            dropout=dropout,
            recompute=recompute,
        )
        self.reduce = Reduction(count, hidden, token_size) if token_size else None
        self.fuse: Any = METHODS[method](
            hidden=token_size or hidden, heads=heads, dropout=dropout, count=count, flow=flow, **diffusion
        )
        self.predict = nn.ModuleList(
            [mlp([self.fuse.size, *predictor_units, outputs], dropout, last=True) for _ in range(count if method == LATE else 1)]
        )
        widths = self.encoders.widths if method in ADAPTS else []
        self.decode = nn.ModuleList([mlp([hidden, hidden, width], 0.0, last=True) for width in widths])

    def tokens(self, features: Sequence[Tensor], present: Tensor) -> Tensor:
        """Features of each modality `[B, F_k]` -> what the fusion sees, `[B, K, D]`."""
        tokens = self.encoders.tokens(features, present)
        return tokens if self.reduce is None else self.reduce(tokens, present)

    def scores(self, fused: Tensor) -> Tensor:
        """`[..., D]` -> `[..., outputs]`: logits of the classes, or the log hazard."""
        return self.predict[0](fused).float()

    def per_modality_scores(self, tokens: Tensor) -> Tensor:
        """Late fusion: the log probabilities, or the log hazard, of each modality's own predictor, `[B, K, outputs]`."""
        scores = torch.stack([predict(tokens[:, k]) for k, predict in enumerate(self.predict)], 1).float()
        return scores.log_softmax(-1) if self.outputs > 1 else scores

    def forward(self, tokens: Tensor, present: Tensor, noise: Tensor | None = None, *, steps: int = 20) -> Tensor:
        """Scores `[N, B, outputs]` of N samples (1 for methods without sampling); the diffusion starts from `noise` `[B, N,
        D]`."""
        if self.method == LATE:
            # Evidence adds up, as if modalities were independent given the outcome; `sharpness` corrects for what they share. A
            # mean would have no factor that is right for one modality and for four.
            evidence = (self.per_modality_scores(tokens) - self.base) * present[..., None]
            return self.sharpness * (self.base.mean(0) + evidence.sum(1))[None]
        return self.sharpness * self.scores(self.fused(tokens, present, noise, steps=steps))

    @property
    def noise_size(self) -> int:
        """Random numbers of a draw: none for a deterministic method."""
        return int(self.fuse.noise_size)

    def fused(self, tokens: Tensor, present: Tensor, noise: Tensor | None, *, steps: int) -> Tensor:
        """Fused vectors `[N, B, F]`, one for each of the noise `[B, N, noise_size]`; N = 1 if the method draws nothing."""
        if not self.noise_size:
            return self.fuse(tokens, present)[None]
        if noise is None:
            raise ValueError(f"{self.method} needs noise [B, N, {self.noise_size}] to draw from")
        return self.fuse.draw(tokens, present, noise, steps=steps)

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
            fused, _ = self.fuse.one_step(tokens, kept, x0, self.fuse.last(noise.noise))
        else:
            fused = self.fuse(tokens * kept[..., None], kept)
        reconstruction = reconstruction_loss([decode(fused) for decode in self.decode], features, present)
        return TrainingOutput(fused, row_losses.mean(), reconstruction)

    def first_estimate(self, tokens: Tensor, kept: Tensor, noise: Tensor) -> Tensor:
        """Attention or diffusion: fused vectors `[M, B, D]` as the decoders know them, from the `kept` modalities of tokens `[B,
        K, D]`; for diffusion the estimates from pure `noise` `[M, B, D]` at the first step of sampling (M = 1 without noise)."""
        if self.method != "diffusion":
            return self.fuse(tokens * kept[..., None], kept)[None]
        count, start = len(noise), self.fuse.last(noise.flatten(0, 1))
        estimate, _ = self.fuse.one_step(tokens.repeat(count, 1, 1), kept.repeat(count, 1), torch.zeros_like(start.noise), start)
        return estimate.unflatten(0, (count, len(tokens)))
