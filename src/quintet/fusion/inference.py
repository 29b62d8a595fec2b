"""A trained run at work: patients with some of their modalities -> class probabilities or a risk."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from quintet.errors import InputError
from quintet.fusion.adaptation import adapt
from quintet.fusion.clinical import Encoder
from quintet.fusion.data import Prepared
from quintet.fusion.evaluation import imputation
from quintet.fusion.losses import standardised
from quintet.fusion.networks import FusionNet, noise_for, seeds_of
from quintet.params.fusion import ADAPTS, CLINICAL, FusionLossWeights, FusionTtt
from quintet.training.hardware import resolve_device
from quintet.training.models import load_network

BATCH = 64  # patients at a time
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Encoded:
    """What a network knows of P patients before anything is left out: names, features of each modality `[P, F_k]`, tokens `[P,
    K, D]`, which are there `[P, K]`, and the inputs."""

    names: list[str]
    features: list[Tensor]
    tokens: Tensor
    present: Tensor
    volumes: Any  # [P, M, S, S, S] float16: an array, or rows of a memory-mapped one
    clinical: Tensor

    def take(self, rows: NDArray[np.int64]) -> "Encoded":
        own = torch.from_numpy(rows)
        return Encoded(
            [self.names[r] for r in rows],
            [f[own] for f in self.features],
            self.tokens[own],
            self.present[own],
            np.stack([self.volumes[r] for r in rows]),
            self.clinical[own],
        )


@dataclass(frozen=True)
class Model:
    """A network, what its patients went through, and how it predicts."""

    net: FusionNet
    modalities: list[str]  # imaging
    classes: list[str]
    encoder: Encoder
    prepared: dict[str, Any]
    sampling_steps: int
    samples: int
    temperature: float
    ttt: FusionTtt
    weights: FusionLossWeights
    device: str

    @staticmethod
    def load(run: Path, device: str) -> "Model":
        net, build = load_network(
            run / "model" / "model.pt",
            "fusion",
            "method",
            lambda build: FusionNet(**{k: v for k, v in build.items() if k != "about"}),
        )
        about, device = build["about"], resolve_device(device)
        return Model(
            net.to(device),
            about["modalities"],
            about["classes"],
            Encoder.from_plain(about["clinical_encoder"]),
            about["prepared"],
            about["sampling_steps"],
            about["samples"],
            about["temperature"],
            FusionTtt(**about["ttt"]),
            FusionLossWeights(**about["loss_weights"]),
            device,
        )

    @property
    def adapts(self) -> bool:
        return self.net.method in ADAPTS

    @torch.inference_mode()
    def encode(
        self, names: list[str], volumes: NDArray[np.float16], clinical: NDArray[np.float32], present: NDArray[np.bool_]
    ) -> Encoded:
        """A few patients at a time."""
        row, there = torch.from_numpy(clinical).to(self.device), torch.from_numpy(present).to(self.device)
        parts = []
        for start in range(0, len(names), BATCH):
            own = slice(start, start + BATCH)
            batch = torch.from_numpy(np.asarray(volumes[own])).float().to(self.device)
            parts.append(self.net.encoders.features(batch, row[own], there[own]))
        features = [torch.cat([part[k] for part in parts]) for k in range(present.shape[1])]
        return Encoded(names, features, self.net.encoders.tokens(features, there), there, volumes, row)

    @torch.inference_mode()
    def __call__(self, patients: Encoded, kept: Tensor, *, sampling_steps: int | None = None) -> tuple[Values, Values]:
        """Probabilities `[P, classes]` (or risks `[P, 1]`) from the modalities `kept` `[P, K]`, and the spread of the draws
        `[P]`."""
        start = noise_for(patients.names, self.samples, patients.tokens.shape[2]).to(self.device)
        return self._joined(self.net(patients.tokens, kept, start, steps=sampling_steps or self.sampling_steps).transpose(0, 1))

    def adapted(
        self, patients: Encoded, kept: Tensor, *, how: FusionTtt | None = None
    ) -> tuple[Values, Values, NDArray[np.bool_]]:
        """The same after test-time training on each patient, and whose loss fell."""
        how = how or self.ttt
        found = []
        for first in range(0, len(patients.names), BATCH):
            own = slice(first, first + BATCH)
            names, there = patients.names[own], kept[own]
            start = noise_for(names, self.samples, patients.tokens.shape[2]).to(self.device)
            if how.parameters == "fusion":
                given = [f[own].clone() * there[:, k, None] for k, f in enumerate(patients.features)]
            else:
                given = [
                    torch.from_numpy(np.asarray(patients.volumes[own])).float().to(self.device),
                    patients.clinical[own].clone(),
                ]
            found.append(
                adapt(
                    self.net,
                    given,
                    there.clone(),
                    start,
                    how=how,
                    weights=self.weights,
                    temperature=self.temperature,
                    sampling_steps=self.sampling_steps,
                    seeds=seeds_of(names),
                )
            )
        values, spread = self._joined(torch.cat([one.scores for one in found]))
        return values, spread, torch.cat([one.adapted for one in found]).cpu().numpy()

    def _joined(self, scores: Tensor) -> tuple[Values, Values]:
        """`[P, N, outputs]` scores of N draws -> their mean prediction and spread."""
        each = scores.softmax(-1) if self.classes else scores
        spread = each.std(1, correction=0).mean(-1)
        return each.mean(1).double().cpu().numpy(), spread.double().cpu().numpy()

    @torch.inference_mode()
    def imputed(self, patients: Encoded, training: Encoded) -> pd.DataFrame:
        """For each modality, held out of patients that have it and another one: how well its features are told by the fused
        vector of the others, drawn and decoded."""
        rows = []
        for k, name in enumerate([*self.modalities, CLINICAL]):
            own, known = ((p.present[:, k] & (p.present.sum(1) > 1)).nonzero()[:, 0].cpu().numpy() for p in (patients, training))
            if len(own) < 2 or len(known) < 2:
                continue
            test, train = patients.take(own), training.take(known)
            without = test.present.clone()
            without[:, k] = False
            start = noise_for(test.names, self.samples, test.tokens.shape[2]).to(self.device)
            fused = self.net.fused(test.tokens * without[..., None], without, start, steps=self.sampling_steps)
            guess = self.net.decode[k](fused).mean(0)
            others = [
                torch.cat(
                    [*(standardised(f) * p.present[:, j, None] for j, f in enumerate(p.features) if j != k), p.present.float()], 1
                )
                for p in (test, train)
            ]
            found = imputation(
                *(
                    x.double().cpu().numpy()
                    for x in (standardised(test.features[k]), guess, others[0], standardised(train.features[k]), others[1])
                )
            )
            rows.append({"modality": name, "patients": len(own), **found})
        return pd.DataFrame(rows)

    def curves(self, patients: Encoded, score: Any) -> pd.DataFrame:
        """Quality and time a patient by sampling steps and by adaptation steps, from everything that is there. `score`: of
        values."""
        rows = []
        if self.net.method == "diffusion":
            for steps in (s for s in (1, 2, 5, 10, 20, 50) if s <= self.net.fuse.how["steps"]):
                started = time.perf_counter()
                values, _ = self(patients, patients.present, sampling_steps=steps)
                rows.append(("sampling", steps, score(values), (time.perf_counter() - started) / len(patients.names)))
        for steps in (0, 1, 2, 5, 10) if self.adapts else ():
            started = time.perf_counter()
            values = self.adapted(patients, patients.present, how=self.ttt.model_copy(update={"steps": steps}))[0]
            rows.append(("adaptation", steps, score(values), (time.perf_counter() - started) / len(patients.names)))
        return pd.DataFrame(rows, columns=["kind", "steps", "score", "seconds_per_patient"])


def of_prepared(model: Model, data: Prepared, rows: NDArray[np.int64]) -> Encoded:
    """Prepared patients; the volumes are read a batch at a time."""
    names = [str(data.table["patient"][row]) for row in rows]
    parts = [
        model.encode(
            names[s : s + BATCH],
            np.stack([data.volumes[r] for r in rows[s : s + BATCH]]),
            data.clinical[rows[s : s + BATCH]],
            data.present[rows[s : s + BATCH]],
        )
        for s in range(0, len(rows), BATCH)
    ]
    return Encoded(
        names,
        [torch.cat(f) for f in zip(*(p.features for p in parts), strict=True)],
        torch.cat([p.tokens for p in parts]),
        torch.cat([p.present for p in parts]),
        _Rows(data.volumes, rows),
        torch.cat([p.clinical for p in parts]),
    )


class _Rows:
    """Some rows of a memory-mapped array, read when they are asked for."""

    def __init__(self, array: NDArray[np.float16], rows: NDArray[np.int64]) -> None:
        self.array, self.rows = array, rows

    def __getitem__(self, key: Any) -> NDArray[np.float16]:
        return np.asarray(self.array[self.rows[key]])


def load_models(runs: Sequence[Path], device: str) -> list[Model]:
    """Runs whose predictions are averaged: they must know the same modalities, classes and preparation."""
    models = [Model.load(run, device) for run in runs]
    for model, run in zip(models, runs, strict=True):
        if (model.modalities, model.classes, model.prepared) != (models[0].modalities, models[0].classes, models[0].prepared):
            raise InputError(f"{runs[0]} and {run} were trained on data prepared in different ways; give runs of one data set")
    return models
