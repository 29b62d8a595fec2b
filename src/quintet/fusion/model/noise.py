"""The random numbers from which predictions are drawn: the same on every machine, whatever patients are predicted together."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def patient_seeds(names: Sequence[str]) -> list[int]:
    """One seed per patient, the same on every machine: a patient's random numbers do not depend on the other patients."""
    return [int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "little") for name in names]


def initial_noise(names: Sequence[str], samples: int, size: int) -> Tensor:
    """`[P, samples, size]`: where each patient's sampling starts."""
    generators = [torch.Generator().manual_seed(seed) for seed in patient_seeds(names)]
    return torch.stack([torch.randn(samples, size, generator=generator) for generator in generators])


def shared_noise(samples: int, size: int) -> Tensor:
    """`[samples, size]`: scrambled Sobol points with a normal distribution, the same for every patient, so that patients with
    equal tokens get equal predictions; with 64 of them, the mean is about as good as with several hundred independent ones."""
    points = torch.quasirandom.SobolEngine(size, scramble=True, seed=0).draw(samples).clamp(1e-6, 1 - 1e-6)
    return torch.special.ndtri(points)
