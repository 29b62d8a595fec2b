"""Inference with a trained run: patients with some of their modalities -> class probabilities or risks."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

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
from quintet.fusion.model.networks import FusionNet
from quintet.fusion.model.noise import shared_noise
from quintet.params.fusion import ADAPTATION_STEPS, ADAPTS, IMPUTES, FusionEvaluation
from quintet.training.hardware import resolve_device
from quintet.training.models import load_network

BATCH = 64  # patients
CURVES = {"sampling": (1, 2, 5, 10, 20, 50), "adaptation": (0, 2, 5, 10, 20, 40)}  # steps
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Encoded:
    """P patients after the encoders, before any modality is left out."""

    names: list[str]
    features: list[Tensor]  # of each modality, [P, F_k]
    tokens: Tensor  # [P, K, D]
    present: Tensor  # [P, K]

    def take(self, rows: NDArray[np.int64]) -> "Encoded":
        chosen = torch.from_numpy(rows)
        names = [self.names[r] for r in rows]
        return Encoded(names, [f[chosen] for f in self.features], self.tokens[chosen], self.present[chosen])


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
    evaluation: FusionEvaluation
    device: str
    adaptation_steps: int = 0  # of test-time training, chosen by the evaluation

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
            evaluation or read_settings(run),
            device,
            0 if evaluation else read_adaptation_steps(run),
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
        return Encoded(names, features, self.net.tokens(features, kept), kept)

    @torch.inference_mode()
    def __call__(self, patients: Encoded, kept: Tensor, *, sampling_steps: int | None = None) -> tuple[Values, Values]:
        """Probabilities `[P, classes]` (or risks `[P, 1]`) from the modalities `kept` `[P, K]`, and their spread over the samples
        `[P]`."""
        steps = sampling_steps or self.sampling_steps
        return self._mean_and_spread(self.net(patients.tokens, kept, self._start(patients), steps=steps).transpose(0, 1))

    def adapted(self, patients: Encoded, kept: Tensor, *, steps: int | None = None) -> tuple[Values, Values, NDArray[np.bool_]]:
        """The same after test-time training on each patient, and which patients kept what was learnt `[P]`."""
        start = self._start(patients)
        with torch.no_grad():
            plain = self.net(patients.tokens, kept, start, steps=self.sampling_steps).transpose(0, 1)
        parts = []
        for first in range(0, len(patients.names), BATCH):
            rows = slice(first, first + BATCH)
            present = kept[rows].clone()
            parts.append(
                adapt(
                    self.net,
                    [f[rows].clone() * present[:, k, None] for k, f in enumerate(patients.features)],
                    present,
                    start[rows],
                    plain[rows],
                    steps=self.adaptation_steps if steps is None else steps,
                    rate=self.evaluation.ttt.rate,
                    sampling_steps=self.sampling_steps,
                )
            )
        values, spread = self._mean_and_spread(torch.cat([part.scores for part in parts]))
        adapted = torch.cat([part.adapted for part in parts]).cpu().numpy()
        plain_values, plain_spread = self._mean_and_spread(plain)  # to the last bit, so that nobody else counts as changed
        return np.where(adapted[:, None], values, plain_values), np.where(adapted, spread, plain_spread), adapted

    def choose_adaptation(self, patients: Encoded, loss: Callable[[Values], float]) -> "Model":
        """The model with the number of steps in evaluation.ttt.steps that has the lowest loss of (validation) patients; of equal
        ones the first."""
        best = min(self.evaluation.ttt.steps, key=lambda steps: loss(self.adapted(patients, patients.present, steps=steps)[0]))
        return replace(self, adaptation_steps=best)

    def _start(self, patients: Encoded) -> Tensor:
        """Noise `[P, N, noise_size]` from which the draws start."""
        draws = self.evaluation.draws if self.imputes else self.evaluation.samples
        return shared_noise(draws, self.net.noise_size).expand(len(patients.names), -1, -1).to(self.device)

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
        sampling = (
            [steps for steps in CURVES["sampling"] if steps <= self.net.fuse.steps] if self.net.method == "diffusion" else []
        )
        rows = []
        for kind, steps in [*(("sampling", s) for s in sampling), *(("adaptation", s) for s in CURVES["adaptation"])]:
            started = time.perf_counter()
            if kind == "sampling":
                values, _ = self(patients, patients.present, sampling_steps=steps)
            else:
                values, _, _ = self.adapted(patients, patients.present, steps=steps)
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


def read_adaptation_steps(run: Path) -> int:
    """The steps of test-time training that a run's evaluation has chosen; 0 for a method that does not adapt."""
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    return int(metrics.get(ADAPTATION_STEPS, 0))


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
    )


def load_models(runs: Sequence[Path], device: str) -> list[Model]:
    """Load the runs whose predictions are averaged; they must have the same modalities, classes and preparation, and encode
    clinical features and tables alike (which is fitted on the training patients)."""
    models = [Model.load(run, device) for run in runs]

    def encoding(model: Model) -> object:
        tables = {name: encoder.to_dict() for name, encoder in model.vector_encoders.items()}
        return model.modalities, model.classes, model.preparation, model.encoder.to_dicts(), tables

    for model, run in zip(models, runs, strict=True):
        if encoding(model) != encoding(models[0]):
            raise InputError(
                f"{runs[0]} and {run} were trained on data prepared in different ways, or split differently; give runs of one "
                "data set and split"
            )
    return models
