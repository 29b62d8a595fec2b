"""Inference with a trained run: patients with some of their modalities -> class probabilities or risks."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from quintet.errors import InputError
from quintet.fusion.data.clinical import Encoder
from quintet.fusion.data.preparation import Preparation
from quintet.fusion.data.prepared import Prepared
from quintet.fusion.data.vectors import VectorEncoder
from quintet.fusion.evaluation.adaptation import adapt
from quintet.fusion.evaluation.scores import completion, imputation
from quintet.fusion.model.losses import standardised
from quintet.fusion.model.networks import FusionNet, initial_noise, patient_seeds, shared_noise
from quintet.params.fusion import ADAPTS, IMPUTES, FusionEvaluation, FusionLossWeights, FusionTtt
from quintet.training.hardware import resolve_device
from quintet.training.models import load_network

BATCH = 64  # patients
SAMPLING_STEPS, ADAPTATION_STEPS = (1, 2, 5, 10, 20, 50), (0, 1, 2, 5, 10)  # of the curves
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Encoded:
    """P patients after the encoders, before any modality is left out."""

    names: list[str]
    features: list[Tensor]  # of each modality, [P, F_k]
    tokens: Tensor  # [P, K, D]
    present: Tensor  # [P, K]
    volumes: Any  # [P, M, S, S, S] float16: an array, or rows of a memory-mapped one
    vectors: list[Tensor]  # [P, W] of each modality that is not an image

    def take(self, rows: NDArray[np.int64]) -> "Encoded":
        chosen = torch.from_numpy(rows)
        return Encoded(
            [self.names[r] for r in rows],
            [f[chosen] for f in self.features],
            self.tokens[chosen],
            self.present[chosen],
            np.stack([self.volumes[r] for r in rows]),
            [v[chosen] for v in self.vectors],
        )


@dataclass(frozen=True)
class Model:
    """A network, the preparation of its patients, and how it predicts."""

    net: FusionNet
    modalities: list[str]  # images, vectors, clinical
    classes: list[str]
    encoder: Encoder
    vector_encoders: dict[str, VectorEncoder]
    preparation: Preparation
    sampling_steps: int
    temperature: float
    loss_weights: FusionLossWeights
    evaluation: FusionEvaluation
    device: str

    @staticmethod
    def load(run: Path, device: str, *, evaluation: FusionEvaluation | None = None) -> "Model":
        """Rebuild a run's network; `evaluation` defaults to the values that the run was evaluated with."""
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
            Encoder.from_dicts(about["clinical_encoder"]),
            {name: VectorEncoder(**values) for name, values in about["vector_encoders"].items()},
            Preparation(**about["prepared"]),
            about["sampling_steps"],
            about["temperature"],
            FusionLossWeights(**about["loss_weights"]),
            evaluation or read_settings(run),
            device,
        )

    @property
    def adapts(self) -> bool:
        return self.net.method in ADAPTS

    @property
    def imputes(self) -> bool:
        return self.net.method in IMPUTES

    @torch.inference_mode()
    def encode(
        self, names: list[str], volumes: NDArray[np.float16], vectors: Sequence[NDArray[np.float32]], present: NDArray[np.bool_]
    ) -> Encoded:
        """`volumes` `[P, M, S, S, S]`, `vectors` `[P, W]`, `present` `[P, K]`; a few patients at a time."""
        values, kept = [torch.from_numpy(v).to(self.device) for v in vectors], torch.from_numpy(present).to(self.device)
        parts = []
        for start in range(0, len(names), BATCH):
            rows = slice(start, start + BATCH)
            batch = torch.from_numpy(np.asarray(volumes[rows])).float().to(self.device)
            parts.append(self.net.encoders.features(batch, [v[rows] for v in values], kept[rows]))
        features = [torch.cat([part[k] for part in parts]) for k in range(present.shape[1])]
        return Encoded(names, features, self.net.tokens(features, kept), kept, volumes, values)

    @torch.inference_mode()
    def __call__(self, patients: Encoded, kept: Tensor, *, sampling_steps: int | None = None) -> tuple[Values, Values]:
        """Probabilities `[P, classes]` (or risks `[P, 1]`) from the modalities `kept` `[P, K]`, and their spread over the samples
        `[P]`."""
        steps = sampling_steps or self.sampling_steps
        return self._mean_and_spread(self.net(patients.tokens, kept, self._start(patients), steps=steps).transpose(0, 1))

    def adapted(
        self, patients: Encoded, kept: Tensor, *, ttt: FusionTtt | None = None
    ) -> tuple[Values, Values, NDArray[np.bool_]]:
        """The same after test-time training on each patient, and for which patients the loss fell `[P]`."""
        ttt = ttt or self.evaluation.ttt
        start, seeds = self._start(patients), patient_seeds(patients.names)
        parts = []
        for first in range(0, len(patients.names), BATCH):
            rows = slice(first, first + BATCH)
            present = kept[rows]
            if ttt.parameters == "fusion":
                inputs = [f[rows].clone() * present[:, k, None] for k, f in enumerate(patients.features)]
            else:
                volumes = torch.from_numpy(np.asarray(patients.volumes[rows])).float().to(self.device)
                inputs = [volumes, *(v[rows].clone() for v in patients.vectors)]
            parts.append(
                adapt(
                    self.net,
                    inputs,
                    present.clone(),
                    start[rows],
                    ttt=ttt,
                    weights=self.loss_weights,
                    temperature=self.temperature,
                    sampling_steps=self.sampling_steps,
                    seeds=seeds[rows],
                )
            )
        values, spread = self._mean_and_spread(torch.cat([part.scores for part in parts]))
        return values, spread, torch.cat([part.adapted for part in parts]).cpu().numpy()

    def _start(self, patients: Encoded) -> Tensor:
        """Noise `[P, N, noise_size]` from which the draws start."""
        size = self.net.noise_size
        if self.imputes and size:
            return shared_noise(self.evaluation.draws, size).expand(len(patients.names), -1, -1).to(self.device)
        return initial_noise(patients.names, self.evaluation.samples, size).to(self.device)

    def _mean_and_spread(self, scores: Tensor) -> tuple[Values, Values]:
        """`scores` `[P, N, outputs]` of N samples -> mean prediction `[P, outputs]` and spread `[P]`."""
        values = scores.softmax(-1) if self.classes else scores
        spread = values.std(1, correction=0).mean(-1)
        return values.mean(1).double().cpu().numpy(), spread.double().cpu().numpy()

    @torch.inference_mode()
    def imputed(self, patients: Encoded, training: Encoded) -> pd.DataFrame:
        """One row per modality: how well its features are predicted from the patient's other modalities, by decoding the fused
        vector, for patients who have the modality and another one."""
        rows = []
        for k, name in enumerate(self.modalities):
            chosen, known = (
                (p.present[:, k] & (p.present.sum(1) > 1)).nonzero()[:, 0].cpu().numpy() for p in (patients, training)
            )
            if len(chosen) < 2 or len(known) < 2:
                continue
            test, train = patients.take(chosen), training.take(known)
            without = test.present.clone()
            without[:, k] = False
            fused = self.net.fused(test.tokens * without[..., None], without, self._start(test), steps=self.sampling_steps)
            decoded = self.net.decode[k](fused).mean(0)
            inputs = (
                standardised(test.features[k]),
                decoded,
                _other_features(test, k),
                standardised(train.features[k]),
                _other_features(train, k),
            )
            found = imputation(*(x.double().cpu().numpy() for x in inputs))
            rows.append({"modality": name, "patients": len(chosen), **found})
        return pd.DataFrame(rows)

    @torch.inference_mode()
    def completions(self, patients: Encoded) -> pd.DataFrame:
        """How well missing tokens are completed, by number of missing modalities: the mean over all sets of modalities, on the
        patients who have every one."""
        rows = patients.present.all(1).nonzero()[:, 0].cpu().numpy()
        count = len(self.modalities)
        if len(rows) < 2:
            return pd.DataFrame(columns=["missing"])
        complete, found = patients.take(rows), []
        for kept in product((False, True), repeat=count):
            if not 0 < sum(kept) < count:
                continue
            mask = torch.tensor(kept, device=self.device)
            fused = self.net.fused(complete.tokens, mask.expand(len(rows), -1), self._start(complete), steps=self.sampling_steps)
            draws = fused.unflatten(-1, complete.tokens.shape[1:])[:, :, ~mask].flatten(2)
            scores = completion(*(x.double().cpu().numpy() for x in (complete.tokens[:, ~mask].flatten(1), draws)))
            found.append({"missing": count - sum(kept)} | scores)
        return pd.DataFrame(found).groupby("missing", as_index=False).mean()

    def curves(self, patients: Encoded, score: Callable[[Values], float]) -> pd.DataFrame:
        """Score and time per patient by number of sampling steps and of adaptation steps, from all modalities of each patient;
        only for methods that adapt."""
        sampling = [steps for steps in SAMPLING_STEPS if steps <= self.net.fuse.steps] if self.net.method == "diffusion" else []
        rows = []
        for kind, steps in [*(("sampling", s) for s in sampling), *(("adaptation", s) for s in ADAPTATION_STEPS)]:
            started = time.perf_counter()
            if kind == "sampling":
                values, _ = self(patients, patients.present, sampling_steps=steps)
            else:
                ttt = self.evaluation.ttt.model_copy(update={"steps": steps})
                values, _, _ = self.adapted(patients, patients.present, ttt=ttt)
            rows.append((kind, steps, score(values), (time.perf_counter() - started) / len(patients.names)))
        return pd.DataFrame(rows, columns=["kind", "steps", "score", "seconds_per_patient"])


def _other_features(patients: Encoded, k: int) -> Tensor:
    """Standardised features of all modalities but `k`, zeros if missing, and which modalities are present."""
    others = [standardised(f) * patients.present[:, j, None] for j, f in enumerate(patients.features) if j != k]
    return torch.cat([*others, patients.present.float()], 1)


def read_settings(run: Path) -> FusionEvaluation:
    """The evaluation parameters that a run was evaluated with."""
    settings = run / "evaluation" / "settings.json"
    if not settings.is_file():
        raise InputError(f"{run}: trained but not evaluated, so samples and ttt are not set; run the evaluation stage first")
    try:
        return FusionEvaluation.model_validate_json(settings.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{settings} cannot be read ({str(error).splitlines()[0]}); evaluate the run again") from None


def encode_prepared(model: Model, data: Prepared, rows: NDArray[np.int64]) -> Encoded:
    """Encode rows of a prepared data set; the volumes are read in batches."""
    names = [str(data.table["patient"][row]) for row in rows]
    parts = [
        model.encode(
            names[s : s + BATCH],
            np.stack([data.volumes[r] for r in rows[s : s + BATCH]]),
            [v[rows[s : s + BATCH]] for v in data.vectors],
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
        [torch.cat(v) for v in zip(*(p.vectors for p in parts), strict=True)],
    )


class _Rows:
    """Some rows of a memory-mapped array, read when they are indexed."""

    def __init__(self, array: NDArray[np.float16], rows: NDArray[np.int64]) -> None:
        self.array, self.rows = array, rows

    def __getitem__(self, key: Any) -> NDArray[np.float16]:
        return np.asarray(self.array[self.rows[key]])


def load_models(runs: Sequence[Path], device: str) -> list[Model]:
    """Load the runs whose predictions are averaged; they must have the same modalities, classes and preparation."""
    models = [Model.load(run, device) for run in runs]
    first = models[0]
    for model, run in zip(models, runs, strict=True):
        if (model.modalities, model.classes, model.preparation) != (first.modalities, first.classes, first.preparation):
            raise InputError(f"{runs[0]} and {run} were trained on data prepared in different ways; give runs of one data set")
    return models
