"""Ways to join the tokens of the present modalities, `[B, K, D]`, into one fused vector `[B, size]`: in one go (`forward`), or as
draws (`draw`) from noise `[B, N, noise_size]`. imputation.py has those that complete the tokens."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintet.fusion.model.encoders import mlp
from quintet.registry import Registry

METHODS = Registry("method")
WIDTH = 32  # of the layers behind small tokens


def masked_mean(tokens: Tensor, present: Tensor) -> Tensor:
    """The mean over the present modalities, `[B, K, D]` -> `[B, D]`."""
    weight = present.float()
    return (tokens * weight[..., None]).sum(1) / weight.sum(1, keepdim=True).clamp_min(1)


class Attention(nn.Module):
    """Multi-head attention over a few tokens."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inward, self.outward = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        """`[B, K, D]` -> `[B, K, D]`; attends only to what is `present` `[B, K]`."""
        batch, count, hidden = x.shape
        q, k, v = self.inward(x).reshape(batch, count, 3, self.heads, hidden // self.heads).permute(2, 0, 3, 1, 4)
        logits = q @ k.transpose(-1, -2) / math.sqrt(hidden // self.heads)
        if present is not None:
            logits = logits.masked_fill(~present[:, None, None, :], -1e4)
        return self.outward((logits.softmax(-1) @ v).transpose(1, 2).reshape(batch, count, hidden))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.before, self.attend = nn.LayerNorm(hidden), Attention(hidden, heads)
        self.between, self.mlp = nn.LayerNorm(hidden), mlp([hidden, 4 * hidden, hidden], dropout, last=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.before(x))
        return x + self.mlp(self.between(x))


class Denoiser(nn.Module):
    """Noisy vector, time and condition as three tokens -> the clean vector or the velocity, predicted from the tokens' mean.

    A prediction from the first token alone needs several epochs to make use of the condition.
    """

    def __init__(self, hidden: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.token_type = nn.Parameter(torch.randn(3, hidden) * 0.02)
        self.time = mlp([hidden, hidden, hidden], 0.0, last=True)
        self.blocks = nn.ModuleList([Block(hidden, heads, dropout) for _ in range(layers)])
        self.out = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, hidden))

    def forward(self, noisy: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """`noisy`, `condition` `[B, D]`, `time` `[B]` (step of the schedule) -> `[B, D]`."""
        half = noisy.shape[1] // 2
        frequency = torch.exp(-math.log(10_000) * torch.arange(half, device=noisy.device) / half)
        angle = time.float()[:, None] * frequency
        time_embedding = self.time(F.pad(torch.cat([angle.sin(), angle.cos()], 1), (0, noisy.shape[1] - 2 * half)))
        x = torch.stack([noisy, time_embedding, condition], 1) + self.token_type
        for block in self.blocks:
            x = block(x)
        return self.out(x.mean(1))


class DiffusionNoise(NamedTuple):
    """The random numbers of one evaluation of the diffusion loss: steps `[B]` and noise `[B, D]`."""

    time: Tensor
    noise: Tensor


@METHODS.register("attention")
class AttentionFusion(nn.Module):
    """Self-attention over the present modalities, then their mean and LayerNorm."""

    def __init__(self, *, hidden: int, heads: int, **_: Any) -> None:
        super().__init__()
        self.attend, self.norm = Attention(hidden, heads), nn.LayerNorm(hidden)
        self.size, self.noise_size = hidden, 0

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        return self.norm(masked_mean(tokens + self.attend(tokens, present), present))


@METHODS.register("diffusion")
class DiffusionFusion(nn.Module):
    """A Gaussian diffusion (Ho et al. 2020, arXiv 2006.11239) over the fused vector, conditioned on the mean of the present
    tokens. The schedule and the DDIM sampler (Song et al. 2021, arXiv 2010.02502) are those of diffusers."""

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
        self.size = self.noise_size = hidden
        self.steps, self.schedule, self.predicts = steps, schedule, predicts
        self.normalised = target != "unguarded"
        # normalised at the end, because it must not start out smaller than the noise, whose variance is 1
        self.condition = nn.Sequential(
            nn.LayerNorm(hidden), *mlp([hidden, hidden, hidden], dropout, last=True), nn.LayerNorm(hidden)
        )
        self.denoise = Denoiser(hidden, layers, heads, dropout)
        self.register_buffer("signal", self.scheduler().alphas_cumprod.float(), persistent=False)

    def scheduler(self, sampler: str = "ddim") -> Any:
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        scheduler_class: Any = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}[sampler]
        return scheduler_class(
            num_train_timesteps=self.steps,
            beta_schedule={"linear": "linear", "cosine": "squaredcos_cap_v2"}[self.schedule],
            prediction_type={"velocity": "v_prediction", "sample": "sample"}[self.predicts],
            clip_sample=False,
            # start at the last step, where the predictor learns (Lin et al. 2024, arXiv 2305.08891)
            **({"timestep_spacing": "trailing"} if sampler == "ddim" else {}),
        )

    def last(self, noise: Tensor) -> DiffusionNoise:
        """The last step, where sampling starts, for each row of the noise `[B, D]`."""
        return DiffusionNoise(torch.full((len(noise),), self.steps - 1, device=noise.device), noise)

    def scaled(self, x: Tensor) -> Tensor:
        """Give fused vectors mean 0 and variance 1, so that training cannot lower the loss by shrinking them."""
        return F.layer_norm(x, x.shape[-1:]) if self.normalised else x

    def target(self, tokens: Tensor, present: Tensor) -> Tensor:
        """x0 `[B, D]`: the mean of all modalities that a patient has, without gradient. With `unguarded`, as the reference
        describes it, gradient flows and the loss can be lowered by shrinking every feature."""
        x0 = self.scaled(masked_mean(tokens, present))
        return x0.detach() if self.normalised else x0

    def one_step(self, tokens: Tensor, present: Tensor, x0: Tensor, noise: DiffusionNoise) -> tuple[Tensor, Tensor]:
        """The estimate of x0 from one noisy version of it, `[B, D]`, and the diffusion loss of each row, `[B]`."""
        clean, rest = self.signal[noise.time][:, None].sqrt(), (1 - self.signal[noise.time][:, None]).sqrt()
        noisy = clean * x0 + rest * noise.noise
        output = self.denoise(noisy, noise.time, self.condition(masked_mean(tokens, present))).float()
        if self.predicts == "sample":
            return self.scaled(output), (output - x0).square().mean(1)
        velocity = clean * noise.noise - rest * x0  # Salimans and Ho 2022, arXiv 2202.00512
        return self.scaled(clean * noisy - rest * output), (output - velocity).square().mean(1)

    def draw(self, tokens: Tensor, present: Tensor, noise: Tensor, *, steps: int) -> Tensor:
        """Fused vectors `[N, B, D]`, one for each of the noise `[B, N, D]`."""
        count = noise.shape[1]
        start = noise.transpose(0, 1).flatten(0, 1)
        return self.sample(tokens.repeat(count, 1, 1), present.repeat(count, 1), start, steps=steps).unflatten(0, (count, -1))

    def sample(self, tokens: Tensor, present: Tensor, noise: Tensor, *, steps: int, sampler: str = "ddim") -> Tensor:
        """Fused vectors `[B, D]` from noise `[B, D]`: DDIM without added noise, or all steps of DDPM (`sampler="ddpm"`)."""
        scheduler = self.scheduler(sampler)
        scheduler.set_timesteps(steps)
        condition, x = self.condition(masked_mean(tokens, present)), noise
        for time in scheduler.timesteps.tolist():
            output = self.denoise(x, torch.full((len(x),), time, device=x.device), condition).float()
            x = scheduler.step(output, time, x).prev_sample
        return self.scaled(x)


@METHODS.register("concat")
class ConcatFusion(nn.Module):
    """Concatenate the tokens, with zeros for missing modalities, and which ones are present; project them to one vector."""

    def __init__(self, *, hidden: int, count: int, dropout: float, **_: Any) -> None:
        super().__init__()
        self.size, self.noise_size = max(hidden, WIDTH), 0
        self.join = nn.Sequential(
            nn.Linear(count * (hidden + 1), self.size), nn.LayerNorm(self.size), nn.GELU(), nn.Dropout(dropout)
        )

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        return self.join(torch.cat([(tokens * present[..., None]).flatten(1), present.to(tokens.dtype)], 1))


@METHODS.register("late")
class LateFusion(nn.Module):
    """No tokens are fused: each modality has its own predictor, and their log odds are averaged (`FusionNet.forward`)."""

    def __init__(self, *, hidden: int, **_: Any) -> None:
        super().__init__()
        self.size, self.noise_size = hidden, 0


@METHODS.register("shaspec")
class SharedSpecificFusion(nn.Module):
    """ShaSpec (Wang et al. 2023, CVPR, arXiv 2307.14126) on tokens: each modality has shared features, by one encoder for all,
    and specific ones. A missing modality gets the mean of the shared features that are there. The residual sums of both, of all
    modalities, are fused.

    `auxiliary`: shared features of different modalities are made alike, specific ones tell which modality they are of."""

    ALIGNMENT, DOMAIN = 0.1, 0.02  # weights of the two terms, as published

    def __init__(self, *, hidden: int, count: int, dropout: float, **_: Any) -> None:
        super().__init__()
        self.size, self.noise_size = count * WIDTH, 0
        self.shared = mlp([hidden, WIDTH, WIDTH], dropout, last=True)
        self.specific = nn.ModuleList([mlp([hidden, WIDTH, WIDTH], dropout, last=True) for _ in range(count)])
        self.joined = nn.Linear(2 * WIDTH, WIDTH)
        self.domain = nn.Linear(WIDTH, count)

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        shared, specific = self._parts(tokens)
        common = masked_mean(shared, present)[:, None].expand_as(shared)
        both = shared + self.joined(torch.cat([shared, specific], -1))
        return torch.where(present[..., None], both, common).flatten(1)

    def _parts(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Shared and specific features `[B, K, W]`."""
        return self.shared(tokens), torch.stack([layer(tokens[:, k]) for k, layer in enumerate(self.specific)], 1)

    def auxiliary(self, tokens: Tensor, present: Tensor) -> Tensor:
        shared, specific = self._parts(tokens)
        others = ~torch.eye(present.shape[1], dtype=torch.bool, device=present.device)
        pairs = present[:, :, None] & present[:, None, :] & others
        distance = (shared[:, :, None] - shared[:, None, :]).abs().mean(-1)
        alignment = (distance * pairs).sum() / pairs.sum().clamp_min(1)
        domain = F.cross_entropy(self.domain(specific)[present], present.nonzero()[:, 1])
        return self.ALIGNMENT * alignment + self.DOMAIN * domain


@METHODS.register("transformer")
class TransformerFusion(nn.Module):
    """A transformer over all tokens, with a learned one in place of each missing modality (a mask token, as in masked
    autoencoders, He et al. 2022, arXiv 2111.06377), then their mean."""

    def __init__(self, *, hidden: int, heads: int, dropout: float, count: int, **_: Any) -> None:
        super().__init__()
        self.size, self.noise_size = WIDTH, 0
        self.inward = nn.Linear(hidden, WIDTH)
        self.place = nn.Parameter(0.02 * torch.randn(count, WIDTH))
        self.masked = nn.Parameter(0.02 * torch.randn(count, WIDTH))
        self.blocks = nn.ModuleList([Block(WIDTH, heads, dropout) for _ in range(2)])
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        x = torch.where(present[..., None], self.inward(tokens), self.masked) + self.place
        for block in self.blocks:
            x = block(x)
        return self.norm(x.mean(1))
