"""Encoders of each modality, four ways to join what is there, a predictor.

volumes [B, M, S, S, S] and the clinical row [B, C], which of these are there [B, K] (K = M + 1)
-> features of each modality [B, F_k] -> tokens [B, K, D] -> fused vector [B, D] -> scores [B, outputs]
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from monai.networks.nets import ResNet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from quintet.fusion.losses import reconstruction_loss
from quintet.registry import Registry

METHODS = Registry("method")
ENCODERS = {
    "small": ("basic", [1, 1, 1, 1]), "resnet10": ("basic", [1, 1, 1, 1]), "resnet18": ("basic", [2, 2, 2, 2]),
    "resnet34": ("basic", [3, 4, 6, 3]), "resnet50": ("bottleneck", [3, 4, 6, 3]),
}  # fmt: skip
MOMENTUM = 0.05  # of running statistics


class RunningNorm(nn.Module):
    """Channels by the mean and SD that training has seen so far, then scaled and shifted; `[B, C, ...]` -> the same shape.

    Like batch norm at test time, in training too: statistics are running ones, without gradient, so that patients of a batch are
    not mixed and a batch of one is as good as any (missing modalities make such batches). Group norm, the usual answer, takes
    away what one patient has more of than another; before a global mean little else is left (README: measured).
    """

    mean: Tensor
    square: Tensor
    seen: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("square", torch.ones(channels))
        self.register_buffer("seen", torch.zeros(()))
        self.updates = True
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.updates:
            self._update(x.detach().float().transpose(0, 1).flatten(1))
        shape = (1, -1, *[1] * (x.dim() - 2))
        scale = self.weight / (self.square - self.mean.square()).clamp_min(1e-5).sqrt()
        return x * scale.view(shape) + (self.bias - self.mean * scale).view(shape)

    @torch.no_grad()
    def _update(self, values: Tensor) -> None:
        """`[C, N]`; an average over all batches at first. New tensors: the backward pass needs those it was computed with."""
        self.seen = self.seen + 1
        share = torch.clamp(1 / self.seen, min=MOMENTUM)
        self.mean = torch.lerp(self.mean, values.mean(1), share)
        self.square = torch.lerp(self.square, values.square().mean(1), share)


class ImageEncoder(nn.Module):
    """3D ResNet (He et al. 2016) with running norm; `[B, 1, S, S, S]` -> `[B, F]`. `small`: one block a stage, the first at half
    the resolution."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        block, layers = ENCODERS[kind]
        planes = [width * 2**i for i in range(4)]
        small = kind == "small"
        self.net = ResNet(
            block, layers, planes, spatial_dims=3, n_input_channels=1, conv1_t_size=3 if small else 7, conv1_t_stride=2,
            no_max_pool=small,
            bias_downsample=False, feed_forward=False,
        )  # fmt: skip
        _use_running_norm(self.net)
        self.features = planes[-1] * (4 if block == "bottleneck" else 1)

    def forward(self, volumes: Tensor) -> Tensor:
        return self.net(volumes).flatten(1)


@contextmanager
def _no_updates(module: nn.Module) -> Iterator[None]:
    """While a forward pass is done again for the backward pass: statistics count a batch once."""
    norms = [m for m in module.modules() if isinstance(m, RunningNorm)]
    for norm in norms:
        norm.updates = False
    yield
    for norm in norms:
        norm.updates = True


def _use_running_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm3d):
            setattr(module, name, RunningNorm(child.num_features))
        else:
            _use_running_norm(child)


def mlp(sizes: Sequence[int], dropout: float, *, last: bool) -> nn.Sequential:
    """Linear layers with GELU and dropout between; `last`: none of them after the last one."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(a, b))
        if not (last and i == len(sizes) - 2):
            layers += [nn.GELU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


class Encoders(nn.Module):
    """One encoder and one projection to `hidden` a modality; zeros where it is absent."""

    def __init__(self, *, images: int, clinical: int, encoder: str, width: int, clinical_units: Sequence[int], hidden: int,
        dropout: float,
                 recompute: bool) -> None:  # fmt: skip
        super().__init__()
        self.images = nn.ModuleList([ImageEncoder(encoder, width) for _ in range(images)])
        # a table without a usable column still is a modality that nobody has
        self.row = mlp([max(clinical, 1), *clinical_units], dropout, last=False)
        own: list[Any] = list(self.images)
        self.widths: list[int] = [encode.features for encode in own] + [clinical_units[-1]]
        self.standard = nn.ModuleList([RunningNorm(width) for width in self.widths])
        self.project = nn.ModuleList([nn.Linear(width, hidden) for width in self.widths])
        self.recompute = recompute

    def features(self, volumes: Tensor, clinical: Tensor, present: Tensor) -> list[Tensor]:
        """`[B, F_k]` of each modality, standardised; zeros where it is absent."""
        found = []
        for k, standard in enumerate(self.standard):
            rows = present[:, k].nonzero()[:, 0]
            out = torch.zeros(len(present), self.widths[k], device=present.device)
            if len(rows):
                own = self._row(clinical[rows]) if k == len(self.images) else self._image(k, volumes[rows, k : k + 1])
                out = out.index_copy(0, rows, standard(own.float()))
            found.append(out)
        return found

    def _image(self, k: int, volumes: Tensor) -> Tensor:
        x = volumes.contiguous(memory_format=torch.channels_last_3d)
        again = self.recompute and self.training and torch.is_grad_enabled()
        if not again:
            return self.images[k](x)
        return checkpoint(self.images[k], x, use_reentrant=False, context_fn=lambda: (nullcontext(), _no_updates(self.images[k])))

    def _row(self, clinical: Tensor) -> Tensor:
        return self.row(clinical if clinical.shape[1] else clinical.new_zeros(len(clinical), 1))

    def tokens(self, features: Sequence[Tensor], present: Tensor) -> Tensor:
        """`[B, K, D]`."""
        return torch.stack([layer(x) for layer, x in zip(self.project, features, strict=True)], 1).float() * present[..., None]


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

    def __init__(self, *, hidden: int, heads: int, dropout: float, steps: int, schedule: str, predicts: str, layers: int,
        target: str,
                 **_: Any) -> None:  # fmt: skip
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
            num_train_timesteps=self.how["steps"], beta_schedule={"linear": "linear",
            "cosine": "squaredcos_cap_v2"}[str(self.how["schedule"])],
            prediction_type={"noise": "epsilon", "sample": "sample"}[str(self.how["predicts"])], clip_sample=False,
        )  # fmt: skip

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
        self, *, method: str, images: int, clinical: int, outputs: int, encoder: str, width: int,
        clinical_units: Sequence[int], hidden: int,
        heads: int, predictor_units: Sequence[int], dropout: float, recompute: bool, diffusion: dict[str, Any], bank: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.method, self.outputs, count = method, outputs, images + 1
        # tokens of training patients, which test-time training contrasts a patient with
        self.register_buffer("bank", torch.zeros(bank, count, hidden))
        self.register_buffer("known", torch.zeros(bank, count, dtype=torch.bool))
        self.encoders = Encoders(images=images, clinical=clinical, encoder=encoder, width=width, clinical_units=clinical_units,
                                 hidden=hidden, dropout=dropout, recompute=recompute)  # fmt: skip
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
