"""Methods that complete the tokens of a patient: missing ones are estimated, or drawn several times, from the observed ones. The
predictor sees all tokens of a completion, and predictions from several draws are averaged.

Tokens `[B, K, D]` are standardised over the training patients and zero where they are missing; `kept` `[B, K]` says which ones a
method may see. A completion keeps these as they are.
"""

import math
from abc import ABC, abstractmethod
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from quintet.fusion.model.encoders import mlp
from quintet.fusion.model.methods import METHODS
from quintet.fusion.model.noise import shared_noise

EM_STEPS = 20
DECAY = 0.995  # per step, of the moving average of the flow's weights
COVERAGE, MIN_CALIBRATION, CALIBRATION_DRAWS = 0.8, 20, 64  # share of tokens in an interval, patients, draws
SPREADS = np.geomspace(0.8, 1.6, 36)  # 2 % apart
RIDGE = 0.1  # added to the diagonal of a covariance matrix of standardised tokens


class Imputation(nn.Module, ABC):
    """The base of these methods. `draws`: whether completions differ. `spread`: factor of their distance from their mean."""

    draws = False
    spread: Tensor

    def __init__(self, *, hidden: int, count: int, **_: Any) -> None:
        super().__init__()
        self.hidden = hidden
        self.size = count * hidden
        self.noise_size = self.size if self.draws else 0
        self.register_buffer("spread", torch.ones(()))

    def fit(self, tokens: Tensor, present: Tensor) -> None:
        """Learn to complete tokens from those of the training patients, with and without a target; some are missing."""

    @abstractmethod
    def estimate(self, tokens: Tensor, kept: Tensor, noise: Tensor | None, *, steps: int) -> Tensor:
        """Completions as learnt."""

    def complete(self, tokens: Tensor, kept: Tensor, noise: Tensor | None, *, steps: int) -> Tensor:
        """Completions `[N, B, K, D]`, one for each of the noise `[B, N, K * D]`; one if the method does not draw."""
        found = self.estimate(tokens, kept, noise, steps=steps)
        mean = found.mean(0)
        return torch.where(kept[..., None], tokens, mean + self.spread * (found - mean)) if len(found) > 1 else found

    @torch.no_grad()
    def calibrate(self, tokens: Tensor, present: Tensor, *, steps: int) -> None:
        """Set the spread at which the intervals of the draws cover their share of the tokens of (validation) patients who have
        all of them, over all sets of known ones."""
        tokens = tokens[present.all(1)]
        if not self.draws or len(tokens) < MIN_CALIBRATION:
            return
        count = present.shape[1]
        noise = shared_noise(CALIBRATION_DRAWS, self.noise_size).expand(len(tokens), -1, -1)
        low, high, error = [], [], []
        for known in product((False, True), repeat=count):
            if 0 < sum(known) < count:
                mask = torch.tensor(known)
                drawn = self.estimate(tokens, mask.expand(len(tokens), -1), noise, steps=steps)[:, :, ~mask].flatten(1).numpy()
                centre = drawn.mean(0)
                error.append(tokens[:, ~mask].flatten().numpy() - centre)
                bounds = np.quantile(drawn - centre, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], axis=0, method="weibull")
                low.append(bounds[0])
                high.append(bounds[1])
        below, above, errors = (np.concatenate(part) for part in (low, high, error))
        covered = [((s * below <= errors) & (errors <= s * above)).mean() for s in SPREADS]
        self.spread.fill_(SPREADS[int(np.abs(np.array(covered) - COVERAGE).argmin())])

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        return self.complete(tokens, present, None, steps=1)[0].flatten(1)

    def draw(self, tokens: Tensor, present: Tensor, noise: Tensor, *, steps: int) -> Tensor:
        return self.complete(tokens, present, noise, steps=steps).flatten(2)


@METHODS.register("mean")
class MeanImputation(Imputation):
    """The training mean, which is zero."""

    def estimate(self, tokens: Tensor, kept: Tensor, noise: Tensor | None, *, steps: int) -> Tensor:
        return (tokens * kept[..., None])[None]


@METHODS.register("ridge")
class RidgeImputation(Imputation):
    """The conditional mean of a multivariate normal distribution with a ridge, fitted by EM (Dempster et al. 1977), that is a
    ridge regression of the missing tokens on any set of observed ones."""

    covariance: Tensor

    def __init__(self, *, hidden: int, count: int, **further: Any) -> None:
        super().__init__(hidden=hidden, count=count, **further)
        self.register_buffer("covariance", torch.eye(self.size))

    def fit(self, tokens: Tensor, present: Tensor) -> None:
        covariance = torch.eye(tokens[0].numel(), dtype=torch.float64)
        x, size = tokens.double().flatten(1), len(tokens)
        for _ in range(EM_STEPS):
            total = torch.zeros_like(covariance)
            for kept, rows in _patterns(present):
                seen, gain, rest = self._conditional(covariance, kept)
                filled = x[rows].clone()
                filled[:, ~seen] = x[rows][:, seen] @ gain.T
                total += filled.T @ filled
                total[(~seen).nonzero(), (~seen).nonzero().T] += len(rows) * rest
            covariance = total / size
        self.covariance.copy_(covariance)

    def _conditional(self, covariance: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which numbers are seen `[K * D]`; the regression on them `[missing, seen]`; the covariance that remains."""
        seen = kept.repeat_interleave(self.hidden)
        inner = covariance[seen][:, seen] + RIDGE * torch.eye(int(seen.sum()), dtype=covariance.dtype, device=covariance.device)
        across = covariance[~seen][:, seen]
        gain = torch.linalg.solve(inner, across.T).T
        return seen, gain, covariance[~seen][:, ~seen] - gain @ across.T

    def estimate(self, tokens: Tensor, kept: Tensor, noise: Tensor | None, *, steps: int) -> Tensor:
        x = tokens.flatten(1)
        count = 1 if noise is None else noise.shape[1]
        out = x.repeat(count, 1, 1)
        for pattern, rows in _patterns(kept):
            seen, gain, rest = self._conditional(self.covariance.double(), pattern)
            if seen.all():
                continue
            filled = (x[rows][:, seen].double() @ gain.T).expand(count, -1, -1)
            if noise is not None:
                values, axes = torch.linalg.eigh(rest)
                root = axes * values.clamp_min(0).sqrt()
                filled = filled + noise[rows][:, :, ~seen].transpose(0, 1).double() @ root.T
            part = out[:, rows]
            part[:, :, ~seen] = filled.to(x.dtype)
            out[:, rows] = part
        return out.unflatten(-1, tokens.shape[1:])


@METHODS.register("gaussian")
class GaussianImputation(RidgeImputation):
    """Draws from the same conditional distribution."""

    draws = True


def _patterns(kept: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each different row of `kept` `[B, K]`, and the rows that are like it."""
    found, inverse = kept.unique(dim=0, return_inverse=True)
    return [(pattern, (inverse == k).nonzero()[:, 0]) for k, pattern in enumerate(found)]


class Velocity(nn.Module):
    """The direction of flow `[B, K, D]` at time `[B]` from 0 (noise) to 1 (tokens): residual layers on all tokens at once, with
    which of them are seen and which are unknown."""

    def __init__(self, hidden: int, count: int, width: int, layers: int) -> None:
        super().__init__()
        self.frequencies = 8
        self.inward = nn.Linear(count * hidden + 2 * count + 2 * self.frequencies, width)
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.LayerNorm(width), mlp([width, 2 * width, width], 0.0, last=True)) for _ in range(layers)]
        )
        self.outward = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, count * hidden))

    def forward(self, x: Tensor, time: Tensor, kept: Tensor, known: Tensor) -> Tensor:
        angle = time[:, None] * math.pi * torch.arange(1, self.frequencies + 1, device=x.device)
        h = self.inward(torch.cat([x.flatten(1), kept.float(), known.float(), angle.sin(), angle.cos()], 1))
        for block in self.blocks:
            h = h + block(h)
        return self.outward(h).view_as(x)


@METHODS.register("flow")
class FlowImputation(Imputation):
    """Draws of the missing tokens given the observed ones by a rectified flow (Liu et al. 2023, arXiv 2209.03003; Lipman et al.
    2023, arXiv 2210.02747), that is a diffusion with straight paths, over the set of tokens: observed ones enter clean with their
    mask, as in CSDI (Tashiro et al. 2021, arXiv 2107.03502)."""

    draws = True

    def __init__(self, *, hidden: int, count: int, flow: dict[str, Any], **further: Any) -> None:
        super().__init__(hidden=hidden, count=count, **further)
        self.flow = flow
        self.velocity = Velocity(hidden, count, flow["width"], flow["layers"])

    def fit(self, tokens: Tensor, present: Tensor) -> None:
        """Flow matching on random sets of kept tokens; keeps a moving average of the weights. A few seconds, so it is repeated
        rather than resumed after a kill."""
        steps, rate = self.flow["iterations"], self.flow["rate"]
        optimizer = torch.optim.AdamW(self.velocity.parameters(), lr=rate, weight_decay=self.flow["weight_decay"])
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
        average = AveragedModel(self.velocity, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
        for _ in range(steps):
            rows = torch.randint(len(tokens), (self.flow["batch_size"],))
            kept = present[rows] & (torch.rand(len(rows), present.shape[1]) >= torch.rand(len(rows), 1))
            optimizer.zero_grad()
            self._loss(tokens[rows], present[rows], kept).backward()
            torch.nn.utils.clip_grad_norm_(self.velocity.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(self.velocity)
        self.velocity.load_state_dict(average.module.state_dict())

    def _loss(self, tokens: Tensor, present: Tensor, kept: Tensor) -> Tensor:
        """Mean squared error of the velocity, over present tokens that are not kept."""
        time, noise = torch.rand(len(tokens)), torch.randn_like(tokens)
        at = time[:, None, None]
        moved = torch.where(kept[..., None], tokens, (1 - at) * noise + at * tokens) * present[..., None]
        error = (self.velocity(moved, time, kept, present) - (tokens - noise)).square().mean(-1)
        target = present & ~kept
        return (error * target).sum() / target.sum().clamp_min(1)

    def estimate(self, tokens: Tensor, kept: Tensor, noise: Tensor | None, *, steps: int) -> Tensor:
        if noise is None:
            raise ValueError("the flow needs noise [B, N, K * D] to draw from")
        count = noise.shape[1]
        seen, clean = kept.repeat(count, 1), tokens.repeat(count, 1, 1)
        x = noise.transpose(0, 1).reshape(clean.shape)
        x = torch.where(seen[..., None], clean, x)
        known = torch.ones_like(seen)

        def moved(x: Tensor, velocity_at: Tensor, time: float, length: float) -> Tensor:
            velocity = self.velocity(velocity_at, torch.full((len(x),), time, device=x.device), seen, known)
            return torch.where(seen[..., None], clean, x + length * velocity)

        for step in range(steps):  # midpoint rule: Euler's loses a quarter of the variance in as many evaluations
            halfway = moved(x, x, step / steps, 0.5 / steps)
            x = moved(x, halfway, (step + 0.5) / steps, 1 / steps)
        return x.unflatten(0, (count, len(tokens)))
