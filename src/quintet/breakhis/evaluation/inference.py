"""Inference with a trained run: images of patients to probabilities."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from quintet.breakhis.data.prepared import Prepared
from quintet.breakhis.data.sampling import MISSING, PatientRows, all_quadruples
from quintet.breakhis.evaluation.metrics import Predicted, subsets
from quintet.breakhis.model.networks import MagnificationNet, normalise
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
    threshold: float  # set on the validation patients; NaN before the evaluation

    @staticmethod
    def load(run: Path, device: str, *, evaluated: bool = True) -> "Model":
        """Rebuild a run's network; its threshold comes from its evaluation."""
        net, build = load_network(
            run / "model" / "model.pt", "breakhis", "magnifications", lambda build: MagnificationNet(**build)
        )
        threshold = _read_threshold(run) if evaluated else float("nan")
        device = resolve_device(device)
        return Model(net.to(device, memory_format=torch.channels_last), build["size"], device, threshold)  # type: ignore[call-overload]

    @property
    def magnifications(self) -> list[str]:
        return self.net.order

    @torch.inference_mode()
    def encode(self, images: Images) -> list[Tensor]:
        """One feature vector per image, `[N, C]` for each magnification. Each image is encoded once, however many quadruples
        contain it."""
        return [
            torch.cat([self.net.encode(m, normalise(torch.from_numpy(part).to(self.device))) for part in _batches(stack)])
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
        quadruples, owner = all_quadruples(patients)
        rows = torch.from_numpy(np.maximum(quadruples, 0)).to(self.device)
        x = torch.stack([v[rows[:, m]] for m, v in enumerate(vectors)], 1)
        present = torch.from_numpy(quadruples != MISSING).to(self.device)
        count = len(patients.names)
        probability: dict[str, NDArray[np.float64]] = {}
        for name in subsets(self.magnifications):
            chosen = torch.tensor([m in name.split("+") for m in self.magnifications], device=self.device)
            usable = (present & chosen).any(1)
            output = self.net.combine(x[usable], (present & chosen)[usable])
            p = output.classes.double().softmax(-1)[:, 1].cpu().numpy()
            probability[name] = _mean_by_owner(p, owner[usable.cpu().numpy()], count)
        # the last subset is all magnifications
        types = _mean_by_owner(output.types.double().softmax(-1).cpu().numpy(), owner, count)
        importance = None
        if output.importance is not None:
            importance = _mean_by_owner(output.importance.double().cpu().numpy(), owner, count)
        attention = [None if w is None else w.double().mean(0).cpu().numpy() for w in (output.hierarchy, output.fusion)]
        single = self._predict_single_images(vectors, patients)
        return Predicted(list(patients.names), self.magnifications, probability, types, single, importance, *attention)

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
            p = self.net.combine(x, present).classes.double().softmax(-1)[:, 1].cpu().numpy()
            names = np.repeat(patients.names, [len(patient_rows[m]) for patient_rows in patients.rows])
            tables.append(pd.DataFrame({"patient": names, "magnification": name, "row": rows, "probability": p}))
        return pd.concat(tables, ignore_index=True)


def _read_threshold(run: Path) -> float:
    path = run / "evaluation" / "inference.json"
    if not path.is_file():
        raise InputError(f"{run}: trained but not evaluated, so its threshold is not set; run the evaluation stage first")
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["threshold"])
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


def predict_prepared(model: Model, data: Prepared, names: Sequence[str]) -> tuple[Predicted, Images, PatientRows]:
    """Predict patients of a prepared data set; also returns their images and rows. Patients without an image at the run's
    magnifications are left out."""
    patients = data.image_rows(names, model.magnifications)
    if not patients.names:
        raise InputError(f"none of the {len(names)} patients has an image at {', '.join(model.magnifications)}; choose others")
    images, rows = [], [list(patient_rows) for patient_rows in patients.rows]
    for m, magnification in enumerate(model.magnifications):  # only the images that are needed are read from disk
        used = np.sort(np.concatenate([patient_rows[m] for patient_rows in patients.rows]))
        images.append(np.array(data.images[magnification][used]))
        for patient_rows in rows:
            patient_rows[m] = np.searchsorted(used, patient_rows[m])
    renumbered = PatientRows(patients.names, rows)
    return model(images, renumbered), images, renumbered


def load_models(runs: Sequence[Path], device: str) -> list[Model]:
    """Load the runs whose predictions are averaged; they must use the same magnifications."""
    models = [Model.load(run, device) for run in runs]
    if len({tuple(model.magnifications) for model in models}) > 1:
        raise InputError("the given runs use different magnifications; give runs that use the same ones")
    return models
