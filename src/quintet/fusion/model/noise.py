"""The random numbers from which predictions are drawn: the same on every machine and for every patient."""

import torch
from torch import Tensor


def shared_noise(samples: int, size: int) -> Tensor:
    """`[samples, size]`: scrambled Sobol points with a normal distribution, the same for every patient, so that a prediction
    depends on the patient's tokens alone, neither on names nor on the other patients; with 64 of them, the mean is about as good
    as with several hundred independent ones."""
    if not size:
        return torch.zeros(samples, 0)
    points = torch.quasirandom.SobolEngine(size, scramble=True, seed=0).draw(samples).clamp(1e-6, 1 - 1e-6)
    return torch.special.ndtri(points)
