"""Four ways to join the modalities that are there, and a predictor.

tokens [B, K, D] (encoders.py) -> fused vector [B, D] -> scores [B, outputs]
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintet.fusion.encoders import Encoders, mlp
from quintet.fusion.losses import reconstruction_loss
from quintet.registry import Registry

METHODS = Registry("method")


def mean_of(tokens: Tensor, present: Tensor) -> Tensor:
    """The mean over the modalities that are there, `[B, K, D]` -> `[B, D]`."""
    share = present.float()
    return (tokens * share[..., None]).sum(1) / share.sum(1, keepdim=True).clamp_min(1)


class Attention(nn.Module):
    """Multi-head attention in plain operations, so that torch.func can map it over patients with weights of their own."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inward, self.outward = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        """`[B, K, D]`; only what is `present` `[B, K]` is looked at."""
        batch, count, hidden = x.shape
        q, k, v = self.inward(x).reshape(batch, count, 3, self.heads, hidden // self.heads).permute(2, 0, 3, 1, 4)
        score = q @ k.transpose(-1, -2) / math.sqrt(hidden // self.heads)
        if present is not None:
            score = score.masked_fill(~present[:, None, None, :], -1e4)
        return self.outward((score.softmax(-1) @ v).transpose(1, 2).reshape(batch, count, hidden))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.before, self.attend = nn.LayerNorm(hidden), Attention(hidden, heads)
        self.between, self.think = nn.LayerNorm(hidden), mlp([hidden, 4 * hidden, hidden], dropout, last=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.before(x))
        return x + self.think(self.between(x))


class Denoiser(nn.Module):
    """Noisy vector, time and condition as three tokens -> noise, or the clean vector, read from their mean: a prediction from
    the first token alone takes epochs to find the condition."""

    def __init__(self, hidden: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.kinds = nn.Parameter(torch.randn(3, hidden) * 0.02)
        self.time = mlp([hidden, hidden, hidden], 0.0, last=True)
        self.blocks = nn.ModuleList([Block(hidden, heads, dropout) for _ in range(layers)])
        self.out = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, hidden))

    def forward(self, noisy: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """`noisy`, `condition` `[B, D]`, `time` `[B]` (step of the schedule)."""
        half = noisy.shape[1] // 2
        speed = torch.exp(-math.log(10_000) * torch.arange(half, device=noisy.device) / half)
        angle = time.float()[:, None] * speed
        told = self.time(F.pad(torch.cat([angle.sin(), angle.cos()], 1), (0, noisy.shape[1] - 2 * half)))
        x = torch.stack([noisy, told, condition], 1) + self.kinds
        for block in self.blocks:
            x = block(x)
        return self.out(x.mean(1))


class Draw(NamedTuple):
    """What is random in one pass of the diffusion's loss: steps `[B]` and noise `[B, D]`."""

    time: Tensor
    noise: Tensor


def seeds_of(names: Sequence[str]) -> list[int]:
    """A number for each patient, the same on every machine: what is drawn for a patient depends on nobody else."""
    return [int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "little") for name in names]


def noise_for(names: Sequence[str], draws: int, size: int) -> Tensor:
    """`[P, draws, size]`: where each patient's sampling starts."""
    return torch.stack([torch.randn(draws, size, generator=torch.Generator().manual_seed(seed)) for seed in seeds_of(names)])


class Learnt(NamedTuple):
    fused: Tensor  # [B, D]
    diffusion: Tensor  # losses
    reconstruction: Tensor


@METHODS.register
class attention(nn.Module):  # noqa: N801
    """Self-attention over the modalities that are there, their mean, LayerNorm."""

    def __init__(self, *, hidden: int, heads: int, **_: Any) -> None:
        super().__init__()
        self.attend, self.norm, self.size = Attention(hidden, heads), nn.LayerNorm(hidden), hidden

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        return self.norm(mean_of(tokens + self.attend(tokens, present), present))


@METHODS.register
class diffusion(nn.Module):  # noqa: N801
    """A Gaussian diffusion (Ho et al. 2020, arXiv 2006.11239) over the fused vector, conditioned on the mean of what is there.
    The schedule and the DDIM sampler (Song et al. 2021, arXiv 2010.02502) are diffusers'."""

    signal: Tensor

    def __init__(
        self,
        *,
        hidden: int,
        heads: int,
        dropout: float,
        steps: int,
        schedule: str,
        predicts: str,
        layers: int,
        target: str,
        **_: Any,
    ) -> None:
        super().__init__()
        self.size, self.how = hidden, {"steps": steps, "schedule": schedule, "predicts": predicts}
        self.normalised = target != "unguarded"
        # the condition stands beside noise of variance 1 and must not start below it
        self.condition = nn.Sequential(
            nn.LayerNorm(hidden), *mlp([hidden, hidden, hidden], dropout, last=True), nn.LayerNorm(hidden)
        )
        self.denoise = Denoiser(hidden, layers, heads, dropout)
        self.register_buffer("signal", self.scheduler().alphas_cumprod.float(), persistent=False)

    def scheduler(self, sampler: str = "ddim") -> Any:
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        kind: Any = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}[sampler]
        return kind(
            num_train_timesteps=self.how["steps"],
            beta_schedule={"linear": "linear", "cosine": "squaredcos_cap_v2"}[str(self.how["schedule"])],
            prediction_type={"noise": "epsilon", "sample": "sample"}[str(self.how["predicts"])],
            clip_sample=False,
        )

    def scaled(self, x: Tensor) -> Tensor:
        """Fused vectors have mean 0 and variance 1, so that training cannot win by shrinking them."""
        return F.layer_norm(x, x.shape[-1:]) if self.normalised else x

    def target(self, tokens: Tensor, present: Tensor) -> Tensor:
        """x0: the mean of all modalities that the patient has. No gradient flows into it (see `unguarded`, as the reference
        describes it: there the loss can be lowered by shrinking every feature)."""
        x0 = self.scaled(mean_of(tokens, present))
        return x0.detach() if self.normalised else x0

    def one_step(self, tokens: Tensor, present: Tensor, x0: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """The estimate of x0 from one noisy version of it, and the diffusion's loss of each row."""
        signal = self.signal[draw.time][:, None]
        noisy = signal.sqrt() * x0 + (1 - signal).sqrt() * draw.noise
        said = self.denoise(noisy, draw.time, self.condition(mean_of(tokens, present))).float()
        if self.how["predicts"] == "sample":
            return self.scaled(said), (said - x0).square().mean(1)
        return self.scaled((noisy - (1 - signal).sqrt() * said) / signal.sqrt().clamp_min(1e-3)), (
            said - draw.noise
        ).square().mean(1)

    def sample(self, tokens: Tensor, present: Tensor, noise: Tensor, *, steps: int, sampler: str = "ddim") -> Tensor:
        """From noise `[B, D]` to fused vectors `[B, D]`: DDIM without added noise, or all steps of DDPM (`sampler="ddpm"`)."""
        scheduler = self.scheduler(sampler)
        scheduler.set_timesteps(steps)
        condition, x = self.condition(mean_of(tokens, present)), noise
        for time in scheduler.timesteps.tolist():
            said = self.denoise(x, torch.full((len(x),), time, device=x.device), condition).float()
            x = scheduler.step(said, time, x).prev_sample
        return self.scaled(x)


@METHODS.register
class concat(nn.Module):  # noqa: N801
    """The tokens side by side, zeros for what is missing."""

    def __init__(self, *, hidden: int, count: int, dropout: float, **_: Any) -> None:
        super().__init__()
        self.join, self.size = (
            nn.Sequential(nn.Linear(count * hidden, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Dropout(dropout)),
            hidden,
        )

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        return self.join((tokens * present[..., None]).flatten(1))


@METHODS.register
class late(nn.Module):  # noqa: N801
    """Nothing is joined: each modality has a predictor of its own, and their predictions are averaged."""

    def __init__(self, *, hidden: int, **_: Any) -> None:
        super().__init__()
        self.size = hidden


class FusionNet(nn.Module):
    """`outputs`: classes, or 1 for a risk. Decoders read each modality's features back from the fused vector."""

    bank: Tensor
    known: Tensor

    def __init__(
        self,
        *,
        method: str,
        images: int,
        clinical: int,
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
        self.method, self.outputs, count = method, outputs, images + 1
        # tokens of training patients, which test-time training contrasts a patient with
        self.register_buffer("bank", torch.zeros(bank, count, hidden))
        self.register_buffer("known", torch.zeros(bank, count, dtype=torch.bool))
        self.encoders = Encoders(
            images=images,
            clinical=clinical,
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
        generative = method in ("attention", "diffusion")
        self.decode = nn.ModuleList(
            [mlp([hidden, hidden, w], 0.0, last=True) for w in self.encoders.widths] if generative else []
        )

    def scores(self, fused: Tensor) -> Tensor:
        """`[..., D]` -> `[..., outputs]`: log odds of the classes, or the log hazard."""
        return self.predict[0](fused).float()

    def alone(self, tokens: Tensor) -> Tensor:
        """late: what each modality says, `[B, K, outputs]`."""
        return torch.stack([predict(tokens[:, k]) for k, predict in enumerate(self.predict)], 1).float()

    def forward(self, tokens: Tensor, present: Tensor, noise: Tensor | None = None, *, steps: int = 20) -> Tensor:
        """Scores `[N, B, outputs]` of N draws (one where nothing is drawn); `noise` `[B, N, D]` for diffusion."""
        if self.method == "late":
            said = self.alone(tokens)
            joined = said.log_softmax(-1).exp() if self.outputs > 1 else said
            mean = mean_of(joined, present)
            return (mean.clamp_min(1e-12).log() if self.outputs > 1 else mean)[None]
        if self.method != "diffusion":
            return self.scores(self.fuse(tokens, present))[None]
        if noise is None:
            raise ValueError("diffusion starts from noise [B, N, D]")
        return self.scores(self.draws(tokens, present, noise, steps=steps))

    def draws(self, tokens: Tensor, present: Tensor, noise: Tensor, *, steps: int) -> Tensor:
        """Fused vectors `[N, B, D]`, one for each noise."""
        count = noise.shape[1]
        many = self.fuse.sample(
            tokens.repeat(count, 1, 1), present.repeat(count, 1), noise.transpose(0, 1).flatten(0, 1), steps=steps
        )
        return many.unflatten(0, (count, len(tokens)))

    def learn(self, features: Sequence[Tensor], tokens: Tensor, present: Tensor, kept: Tensor, x0: Tensor, draw: Draw) -> Learnt:
        """One training pass of attention and diffusion: from the modalities that are `kept` to the fused vector, which is to
        tell the features of all that are `present`."""
        rows = torch.zeros(len(tokens), device=tokens.device)
        if self.method == "diffusion":
            _, rows = self.fuse.one_step(tokens, kept, x0, draw)
            # What is predicted from is estimated where sampling starts: earlier steps show the target itself, and the encoders,
            # which
            # it gives no gradient, would learn little from them.
            last = torch.full_like(draw.time, self.fuse.how["steps"] - 1)
            fused, _ = self.fuse.one_step(tokens, kept, x0, Draw(last, draw.noise))
        else:
            fused = self.fuse(tokens * kept[..., None], kept)
        return Learnt(fused, rows.mean(), reconstruction_loss([decode(fused) for decode in self.decode], features, present))

    def fused(self, tokens: Tensor, present: Tensor, noise: Tensor, *, steps: int) -> Tensor:
        """Fused vectors `[N, B, D]` of attention and diffusion alike."""
        return self.draws(tokens, present, noise, steps=steps) if self.method == "diffusion" else self.fuse(tokens, present)[None]
