"""Inference with a trained run: images of patients to probabilities."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from quintet.breakhis.data.prepared import Prepared
from quintet.breakhis.data.sampling import MISSING, PatientRows, all_quadruples
from quintet.breakhis.evaluation.metrics import Predicted, choose_threshold, fit_temperature, subsets
from quintet.breakhis.model.networks import MagnificationNet
from quintet.errors import InputError
from quintet.training.hardware import resolve_device
from quintet.training.models import load_network

BATCH = 64  # images
Images = list[NDArray[np.uint8]]  # per magnification [N, S, S, 3]


@dataclass(frozen=True)
class Model:
    net: MagnificationNet
    size: int
    device: str
    temperature: float = 1.0  # of the class logits; like the threshold set on the validation patients, by the evaluation
    threshold: float = 0.5

    @staticmethod
    def load(run: Path, device: str, *, evaluated: bool = True) -> "Model":
        """Rebuild a run's network; its temperature and threshold come from its evaluation."""
        net, build = load_network(
            run / "model" / "model.pt", "breakhis", "magnifications", lambda build: MagnificationNet(**build)
        )
        fitted = _read_fitted(run) if evaluated else {}
        device = resolve_device(device)
        return Model(net.to(device, memory_format=torch.channels_last), build["size"], device, **fitted)  # type: ignore[call-overload]

    @property
    def magnifications(self) -> list[str]:
        return self.net.order

    @torch.inference_mode()
    def encode(self, images: Images) -> list[Tensor]:
        """One feature vector per image, `[N, C]` for each magnification. Each image is encoded once, however many quadruples
        contain it."""
        return [
            torch.cat(
                [self.net.encode(m, self.net.normalise(torch.from_numpy(part).to(self.device))) for part in _batches(stack)]
            )
            if len(stack)
            else torch.zeros(1, self.net.channels, device=self.device)
            for m, stack in zip(self.magnifications, images, strict=True)
        ]

    @torch.inference_mode()
    def __call__(self, images: Images, patients: PatientRows) -> Predicted:
        """Average the quadruples that cover all images of a patient, for each subset of the magnifications.

        The magnifications outside a subset are masked, not filled. `patients.rows` are rows of `images`.
        """
        vectors = self.encode(images)
        x, present, owner = self._quadruples(vectors, patients)
        count = len(patients.names)
        probability: dict[str, NDArray[np.float64]] = {}
        for name in subsets(self.magnifications):
            chosen = torch.tensor([m in name.split("+") for m in self.magnifications], device=self.device)
            usable = (present & chosen).any(1)
            output = self.net.combine(x[usable], (present & chosen)[usable])
            p = self._malignant(output.classes)
            probability[name] = _mean_by_owner(p, owner[usable.cpu().numpy()], count)
        # the last subset is all magnifications
        types = _mean_by_owner(output.types.double().softmax(-1).cpu().numpy(), owner, count)
        importance = None
        if output.importance is not None:
            importance = _mean_by_owner(output.importance.double().cpu().numpy(), owner, count)
        attention = [
            None if w is None else _mean_by_owner(w.double().cpu().numpy(), owner, count).mean(0)
            for w in (output.hierarchy, output.fusion)
        ]
        single = self._predict_single_images(vectors, patients)
        return Predicted(list(patients.names), self.magnifications, probability, types, single, importance, *attention)

    def _malignant(self, logits: Tensor) -> NDArray[np.float64]:
        """The calibrated probability of malignant `[B]` from class logits `[B, 2]`."""
        return np.asarray((logits.double() / self.temperature).softmax(-1)[:, 1].cpu().numpy())

    @torch.inference_mode()
    def calibrate(self, images: Images, patients: PatientRows, labels: NDArray[np.int64]) -> "Model":
        """The model with the temperature and threshold that suit these patients, whose classes are `labels` `[P]`."""
        x, present, owner = self._quadruples(self.encode(images), patients)
        logits = self.net.combine(x, present).classes

        def probability_at(temperature: float) -> NDArray[np.float64]:
            return _mean_by_owner(replace(self, temperature=temperature)._malignant(logits), owner, len(labels))

        temperature = fit_temperature(labels, probability_at)
        return replace(self, temperature=temperature, threshold=choose_threshold(labels, probability_at(temperature)))

    def _quadruples(self, vectors: list[Tensor], patients: PatientRows) -> tuple[Tensor, Tensor, NDArray[np.int64]]:
        """The vectors `[Q, M, C]` of the quadruples that cover all images, which exist `[Q, M]`, and whose they are `[Q]`."""
        quadruples, owner = all_quadruples(patients)
        rows = torch.from_numpy(np.maximum(quadruples, 0)).to(self.device)
        x = torch.stack([v[rows[:, m]] for m, v in enumerate(vectors)], 1)
        return x, torch.from_numpy(quadruples != MISSING).to(self.device), owner

    def _predict_single_images(self, vectors: list[Tensor], patients: PatientRows) -> pd.DataFrame:
        """Each image by itself, with the other magnifications masked."""
        tables = []
        for m, name in enumerate(self.magnifications):
            rows = np.concatenate([patient_rows[m] for patient_rows in patients.rows])
            if not len(rows):
                continue
            x = torch.zeros(len(rows), len(vectors), self.net.channels, device=self.device)
            x[:, m] = vectors[m][torch.from_numpy(rows).to(self.device)]
            present = torch.zeros(x.shape[:2], dtype=torch.bool, device=self.device)
            present[:, m] = True
            p = self._malignant(self.net.combine(x, present).classes)
            names = np.repeat(patients.names, [len(patient_rows[m]) for patient_rows in patients.rows])
            tables.append(pd.DataFrame({"patient": names, "magnification": name, "row": rows, "probability": p}))
        return pd.concat(tables, ignore_index=True)


def _read_fitted(run: Path) -> dict[str, float]:
    """The temperature and the threshold."""
    path = run / "evaluation" / "inference.json"
    if not path.is_file():
        raise InputError(
            f"{run}: trained but not evaluated, so its temperature and threshold are not set; run the evaluation stage first"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {name: float(values[name]) for name in ("temperature", "threshold")}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); evaluate the run again") from None


def _batches(images: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return [np.array(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]


def _mean_by_owner(values: NDArray[np.float64], owner: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Mean over the rows of each of `count` owners; NaN for one without rows."""
    sums = np.zeros((count, *values.shape[1:]))
    np.add.at(sums, owner, values)
    rows = np.bincount(owner, minlength=count).astype(float).reshape(-1, *[1] * (values.ndim - 1))
    return np.divide(sums, rows, out=np.full_like(sums, np.nan), where=rows > 0)


def read_patients(model: Model, data: Prepared, names: Sequence[str]) -> tuple[Images, PatientRows]:
    """The images that a model needs of patients of a prepared data set, and the patients' rows in them. Patients without an image
    at the model's magnifications are left out."""
    patients = data.image_rows(names, model.magnifications)
    if not patients.names:
        raise InputError(f"none of the {len(names)} patients has an image at {', '.join(model.magnifications)}; choose others")
    images, rows = [], [list(patient_rows) for patient_rows in patients.rows]
    for m, magnification in enumerate(model.magnifications):  # only the images that are needed are read from disk
        used = np.sort(np.concatenate([patient_rows[m] for patient_rows in patients.rows]))
        images.append(np.array(data.images[magnification][used]))
        for patient_rows in rows:
            patient_rows[m] = np.searchsorted(used, patient_rows[m])
    return images, PatientRows(patients.names, rows)


def load_models(runs: Sequence[Path], device: str) -> list[Model]:
    """Load the runs whose predictions are averaged; they must use the same magnifications."""
    models = [Model.load(run, device) for run in runs]
    if len({tuple(model.magnifications) for model in models}) > 1:
        raise InputError("the given runs use different magnifications; give runs that use the same ones")
    return models
