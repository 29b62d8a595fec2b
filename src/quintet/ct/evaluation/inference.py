"""Inference with a trained run: cubes to embeddings."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from quintet.ct.data.prepared import CubeFormat, Prepared
from quintet.ct.evaluation.scores import evaluate
from quintet.ct.metrics import cosine
from quintet.ct.model.networks import Proximity, network_input
from quintet.errors import InputError
from quintet.params import Compute
from quintet.params.ct import CtEvaluation
from quintet.runs import Record
from quintet.training.hardware import resolve_device
from quintet.training.models import load_network

BATCH = 8
NOT_NETWORK = ("cubes", "names")  # build values that describe the data
Cubes = NDArray[np.uint8]  # [N, S, S, S]


@dataclass(frozen=True)
class Embeddings:
    vectors: NDArray[np.float32]  # [N, E], of length 1
    probabilities: NDArray[np.float32] | None  # [N, F], if the network classifies


@dataclass(frozen=True)
class Model:
    """A trained network, and how its input was prepared."""

    net: Proximity
    cubes: CubeFormat
    findings: list[str]
    device: str

    @staticmethod
    def load(run: Path, device: str) -> "Model":
        return Model.read(run / "model" / "model.pt", device)

    @staticmethod
    def read(path: Path, device: str) -> "Model":
        net, build = load_network(
            path, "ct", "input_size", lambda build: Proximity(**{k: v for k, v in build.items() if k not in NOT_NETWORK})
        )
        device = resolve_device(device)
        net = net.to(device)
        net.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return Model(net, CubeFormat.from_dict(build["cubes"]), build["names"], device)

    def get_embeddings(self, volumes: torch.Tensor) -> Embeddings:
        """Embed stored cubes `[B, S, S, S]` uint8."""
        with torch.inference_mode():
            output = self.net(network_input(volumes.to(self.device), self.net.input_size))
        probabilities = None if output.logits is None else output.logits.float().sigmoid().cpu().numpy()
        return Embeddings(output.embedding.float().cpu().numpy(), probabilities)

    def __call__(self, volumes: Cubes, rows: NDArray[np.int64] | None = None) -> Embeddings:
        """Embed stored cubes (or some rows of them) in batches."""
        chosen = np.arange(len(volumes)) if rows is None else rows
        return concatenate(
            [
                self.get_embeddings(torch.from_numpy(np.stack([volumes[row] for row in chosen[start : start + BATCH]])))
                for start in range(0, len(chosen), BATCH)
            ]
        )


def concatenate(parts: Sequence[Embeddings]) -> Embeddings:
    """Join the embeddings of different scans by the same network."""
    probabilities = [part.probabilities for part in parts if part.probabilities is not None]
    return Embeddings(np.concatenate([part.vectors for part in parts]), np.concatenate(probabilities) if probabilities else None)


def evaluate_run(
    run: Path, data: Prepared, out: Path, evaluation: CtEvaluation, compute: Compute, *, record: Record
) -> dict[str, float]:
    """Embed the test scans and evaluate how well they retrieve each other; writes into `out`, returns metrics."""
    model = Model.load(run, compute.device)
    for what, own, prepared in (("cubes", model.cubes, data.cubes), ("findings", model.findings, data.findings)):
        if own != prepared:
            raise InputError(f"{run} was trained on other {what} than {data.folder} has ({own}, {prepared}); train it again")
    rows = data.rows("test")
    started = time.monotonic()
    embeddings = model(data.volumes, rows)
    seconds = time.monotonic() - started
    metrics = evaluate(
        cosine(embeddings.vectors),
        data.scans(rows),
        neighbours=evaluation.neighbours,
        record=record,
        out=out,
        probabilities=embeddings.probabilities,
        vectors=embeddings.vectors,
        model=run / "model",
    )
    return metrics | {"evaluation_seconds_per_scan": seconds / len(rows)}


def load_models(runs: Sequence[Path], device: str) -> list[Model]:
    """Load runs whose embeddings will be combined; their models must take the same input."""
    models = [Model.load(run, device) for run in runs]
    for model, run in zip(models, runs, strict=True):
        if model.cubes != models[0].cubes:
            raise InputError(f"{runs[0]} and {run} were trained on different cubes; use runs of one data set")
        if model.findings != models[0].findings:
            raise InputError(f"{runs[0]} and {run} were trained on different findings; use runs of one data set")
    return models


def embed_with_all(models: Sequence[Model], cubes: Cubes) -> Embeddings:
    """Concatenate several networks' vectors, which averages their cosine similarities; probabilities are averaged as well."""
    parts = [model(cubes) for model in models]
    vectors = np.concatenate([part.vectors for part in parts], 1) / np.float32(np.sqrt(len(parts)))
    probabilities = [part.probabilities for part in parts if part.probabilities is not None]
    mean = np.mean(probabilities, 0).astype(np.float32) if len(probabilities) == len(parts) else None
    return Embeddings(vectors.astype(np.float32), mean)
