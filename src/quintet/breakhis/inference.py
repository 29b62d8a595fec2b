"""A trained run at work: images of patients -> probabilities."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from quintet.breakhis.data import Prepared
from quintet.breakhis.metrics import Predicted, subsets
from quintet.breakhis.networks import MagnificationNet, normalise
from quintet.breakhis.sampling import NONE, Patients, all_quadruples
from quintet.errors import InputError
from quintet.training.hardware import resolve_device
from quintet.training.models import load_network

BATCH = 64
Images = list[NDArray[np.uint8]]  # per magnification [N, S, S, 3]


@dataclass(frozen=True)
class Model:
    net: MagnificationNet
    size: int
    device: str
    threshold: float  # locked on the validation patients; NaN before the run was evaluated

    @staticmethod
    def load(run: Path, device: str, *, evaluated: bool = True) -> "Model":
        """Rebuild a run's network; its threshold comes from its evaluation."""
        net, build = load_network(
            run / "model" / "model.pt", "breakhis", "magnifications", lambda build: MagnificationNet(**build)
        )
        settings = run / "evaluation" / "inference.json"
        if evaluated and not settings.is_file():
            raise InputError(f"{run}: trained but not evaluated, so its threshold is not set; run the evaluation stage first")
        try:
            threshold = float(json.loads(settings.read_text(encoding="utf-8"))["threshold"]) if evaluated else float("nan")
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{settings}: damaged ({error}); evaluate the run again") from None
        device = resolve_device(device)
        return Model(net.to(device, memory_format=torch.channels_last), build["size"], device, threshold)  # type: ignore[call-overload]

    @property
    def magnifications(self) -> list[str]:
        return self.net.order

    @torch.inference_mode()
    def encode(self, images: Images) -> list[Tensor]:
        """One vector an image, `[N, C]` for each magnification: each is computed once, in however many quadruples it stands."""
        return [
            torch.cat([self.net.encode(m, normalise(torch.from_numpy(part).to(self.device))) for part in _parts(own)])
            if len(own)
            else torch.zeros(1, self.net.channels, device=self.device)
            for m, own in zip(self.magnifications, images, strict=True)
        ]

    @torch.inference_mode()
    def __call__(self, images: Images, patients: Patients) -> Predicted:
        """Every image of every patient, in quadruples, averaged to one score a patient, for each subset of magnifications. What a
        subset leaves out is masked, not filled. `patients.rows` are rows of `images`."""
        vectors = self.encode(images)
        quadruples, owner = all_quadruples(patients)
        rows = torch.from_numpy(np.maximum(quadruples, 0)).to(self.device)
        x = torch.stack([own[rows[:, m]] for m, own in enumerate(vectors)], 1)
        have = torch.from_numpy(quadruples != NONE).to(self.device)
        count = len(patients.names)
        probability: dict[str, NDArray[np.float64]] = {}
        for name in subsets(self.magnifications):
            chosen = torch.tensor([m in name.split("+") for m in self.magnifications], device=self.device)
            usable = (have & chosen).any(1)
            scores = self.net.combine(x[usable], (have & chosen)[usable])
            p = scores.classes.double().softmax(-1)[:, 1].cpu().numpy()
            probability[name] = _mean(p, owner[usable.cpu().numpy()], count)
        # the last subset is all of them
        types = _mean(scores.types.double().softmax(-1).cpu().numpy(), owner, count)
        weights = None if scores.importance is None else _mean(scores.importance.double().cpu().numpy(), owner, count)
        between = [None if w is None else w.double().mean(0).cpu().numpy() for w in (scores.hierarchy, scores.fusion)]
        return Predicted(
            list(patients.names), self.magnifications, probability, types, self._alone(vectors, patients), weights, *between
        )

    def _alone(self, vectors: list[Tensor], patients: Patients) -> pd.DataFrame:
        """Each image by itself, the other magnifications masked."""
        tables = []
        for m, name in enumerate(self.magnifications):
            rows = np.concatenate([own[m] for own in patients.rows])
            if not len(rows):
                continue
            x = torch.zeros(len(rows), len(vectors), self.net.channels, device=self.device)
            x[:, m] = vectors[m][torch.from_numpy(rows).to(self.device)]
            present = torch.zeros(x.shape[:2], dtype=torch.bool, device=self.device)
            present[:, m] = True
            p = self.net.combine(x, present).classes.double().softmax(-1)[:, 1].cpu().numpy()
            names = np.repeat(patients.names, [len(own[m]) for own in patients.rows])
            tables.append(pd.DataFrame({"patient": names, "magnification": name, "row": rows, "probability": p}))
        return pd.concat(tables, ignore_index=True)


def _parts(images: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return [np.array(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]


def _mean(values: NDArray[np.float64], owner: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Mean over the rows of each of `count` owners; NaN for one without rows."""
    sums = np.zeros((count, *values.shape[1:]))
    np.add.at(sums, owner, values)
    rows = np.bincount(owner, minlength=count).astype(float).reshape(-1, *[1] * (values.ndim - 1))
    return np.divide(sums, rows, out=np.full_like(sums, np.nan), where=rows > 0)


def predict_prepared(model: Model, data: Prepared, names: Sequence[str]) -> tuple[Predicted, Images, Patients]:
    """Patients of a prepared data set; those without an image of the run's magnifications are left out."""
    patients = data.rows(names, model.magnifications)
    if not patients.names:
        raise InputError(f"none of the {len(names)} patients has an image at {', '.join(model.magnifications)}; choose others")
    images, rows = [], [list(own) for own in patients.rows]
    for m, name in enumerate(model.magnifications):  # only what is needed leaves the disk
        used = np.sort(np.concatenate([own[m] for own in patients.rows]))
        images.append(np.array(data.images[name][used]))
        for own in rows:
            own[m] = np.searchsorted(used, own[m])
    local = Patients(patients.names, rows)
    return model(images, local), images, local


def load_models(runs: Sequence[Path], device: str) -> list[Model]:
    models = [Model.load(run, device) for run in runs]
    if len({tuple(model.magnifications) for model in models}) > 1:
        raise InputError("the given runs see different magnifications; give runs that see the same ones")
    return models
