"""A trained run at work: cubes -> vectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from quintet.ct.networks import Proximity, see
from quintet.errors import InputError
from quintet.training.hardware import resolve_device
from quintet.training.models import load_network

BATCH = 8
Cubes = NDArray[np.uint8]  # [N, S, S, S]


@dataclass(frozen=True)
class Embedded:
    vectors: NDArray[np.float32]  # [N, E], of length 1
    probability: NDArray[np.float32] | None  # [N, F] where the network classifies


@dataclass(frozen=True)
class Model:
    """A network and what its input went through: cubes of `size` voxels, a window of HU."""

    net: Proximity
    size: int
    window_hu: tuple[float, float]
    findings: list[str]
    device: str

    @staticmethod
    def load(run: Path, device: str) -> "Model":
        return Model.read(run / "model" / "model.pt", device)

    @staticmethod
    def read(path: Path, device: str) -> "Model":
        about = {"size", "window", "names"}
        net, build = load_network(
            path, "ct", "input_size", lambda build: Proximity(**{k: v for k, v in build.items() if k not in about})
        )
        device = resolve_device(device)
        net = net.to(device)
        net.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return Model(net, build["size"], tuple(build["window"]), build["names"], device)

    def get_embeddings(self, volumes: torch.Tensor, *, mixed_precision: bool = False) -> Embedded:
        """Of stored cubes `[B, S, S, S]` uint8; `mixed_precision`: bfloat16 where it applies."""
        with torch.inference_mode(), torch.autocast(self.device, torch.bfloat16, enabled=mixed_precision):
            out = self.net(see(volumes.to(self.device), self.net.input_size))
        scores = None if out.scores is None else out.scores.float().sigmoid().cpu().numpy()
        return Embedded(out.embedding.float().cpu().numpy(), scores)

    def __call__(self, volumes: Cubes, rows: NDArray[np.int64] | None = None) -> Embedded:
        """A few of many stored cubes at a time."""
        chosen = np.arange(len(volumes)) if rows is None else rows
        parts = [
            self.get_embeddings(torch.from_numpy(np.stack([volumes[row] for row in chosen[start : start + BATCH]])))
            for start in range(0, len(chosen), BATCH)
        ]
        probability = (
            None if parts[0].probability is None else np.concatenate([p.probability for p in parts if p.probability is not None])
        )
        return Embedded(np.concatenate([p.vectors for p in parts]), probability)


def load_models(runs: Sequence[Path], device: str) -> list[Model]:
    """Runs whose embeddings are joined: they must see the same cubes."""
    models = [Model.load(run, device) for run in runs]
    for model, run in zip(models, runs, strict=True):
        if (model.size, model.window_hu) != (models[0].size, models[0].window_hu):
            raise InputError(f"{runs[0]} and {run} were trained on cubes of other sizes or windows; give runs of one data set")
    return models


def joined(models: Sequence[Model], cubes: Cubes) -> Embedded:
    """The vectors of several runs behind each other (cosine similarity is then the mean of theirs), probabilities averaged."""
    found = [model(cubes) for model in models]
    vectors = np.concatenate([one.vectors for one in found], 1) / np.float32(np.sqrt(len(found)))
    heads = [one.probability for one in found if one.probability is not None]
    mean = np.mean(heads, 0).astype(np.float32) if len(heads) == len(found) else None
    return Embedded(vectors.astype(np.float32), mean)
