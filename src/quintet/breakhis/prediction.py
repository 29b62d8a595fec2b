"""From a trained run to probabilities by patient: on prepared arrays (evaluation) and on folders (`quintet predict breakhis`)."""

import json
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from quintet.breakhis.data import Prepared, read_images
from quintet.breakhis.evaluation import Predicted, evaluate, mean_of, subsets
from quintet.breakhis.networks import MagnificationNet, normalise
from quintet.breakhis.sampling import NONE, Patients, all_quadruples
from quintet.breakhis.tree import CLASSES, MAGNIFICATIONS, TYPES, picture_files, read_tree
from quintet.errors import InputError, Problems
from quintet.files import whole_file, whole_folder
from quintet.params import BreakHis
from quintet.runs import read_record
from quintet.training.hardware import resolve_device
from quintet.training.models import load_model

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
        state, build = load_model(run / "model" / "model.pt")
        if "magnifications" not in build:
            raise InputError(f"{run}: a run of another study; give one of runs/breakhis")
        settings = run / "evaluation" / "inference.json"
        if evaluated and not settings.is_file():
            raise InputError(f"{run}: trained but not evaluated, so its threshold is not set; run the evaluation stage first")
        try:
            threshold = float(json.loads(settings.read_text(encoding="utf-8"))["threshold"]) if evaluated else float("nan")
            net = MagnificationNet(**build)
            net.load_state_dict(state)
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise InputError(f"{run}: damaged ({str(error).splitlines()[0]}); train and evaluate it again") from None
        device = resolve_device(device)
        return Model(net.eval().to(device, memory_format=torch.channels_last), build["size"], device, threshold)  # type: ignore[call-overload]

    @property
    def magnifications(self) -> list[str]:
        return self.net.order

    @torch.inference_mode()
    def encode(self, images: Images) -> list[Tensor]:
        """One vector an image, `[N, C]` for each magnification: each is computed once, in however many quadruples it stands."""
        return [
            torch.cat([self.net.encode(m, normalise(torch.from_numpy(part).to(self.device))) for part in _parts(own)])
            if len(own) else torch.zeros(1, self.net.channels, device=self.device)
            for m, own in zip(self.magnifications, images, strict=True)
        ]  # fmt: skip

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


def find_patients(source: Path) -> dict[str, dict[str, list[Path]]]:
    """Folders that hold 40X, 100X, 200X or 400X, below `source` or `source` itself: name -> magnification -> files."""
    source = Path(source)
    if not source.is_dir():
        raise InputError(
            f"{source}: no such folder; give a patient's folder with {', '.join(MAGNIFICATIONS)} in it, or one above"
        )
    found: dict[Path, dict[str, list[Path]]] = defaultdict(dict)
    for path in picture_files(source):
        if (name := path.parent.absolute().name) in MAGNIFICATIONS:
            found[path.absolute().parent.parent].setdefault(name, []).append(path)
    if not found:
        raise InputError(f"{source}: no picture below it in a folder named {', '.join(MAGNIFICATIONS)}")
    names = [folder.name for folder in found]
    return {
        folder.name if names.count(folder.name) == 1 else str(folder.relative_to(source.absolute())): own
        for folder, own in sorted(found.items())
    }


def predict_folder(runs: Sequence[Path], source: Path, output: Path, *, overlays: Path | None, device: str, skip: bool) -> int:
    """Predict every patient below `source` with the mean of the given runs; returns the number of patients.

    `output` (CSV): patient, probability of malignant, class at the locked threshold, the probability of each type, magnifications
    used, their learned importance where the network has one. `overlays`: a Grad-CAM page per patient. Unreadable images are all
    listed at once.
    """
    from quintet.breakhis.cam import draw_cam

    models = load_models(runs, device)
    threshold = float(np.mean([model.threshold for model in models]))
    order, rows, problems, predicted = models[0].magnifications, [], [], 0
    with ExitStack() as opened:
        beside = opened.enter_context(whole_file(Path(output)))
        pages = opened.enter_context(whole_folder(overlays)) if overlays else None
        for name, files in find_patients(source).items():
            images, errors = _read_patient([files.get(m, []) for m in order], [model.size for model in models])
            problems += errors
            if not any(len(own) for own in images[0]):
                problems += [] if errors else [f"{name}: no image at {', '.join(order)}, which the run was trained on"]
                continue
            patient = Patients([name], [[np.arange(len(own)) for own in images[0]]])
            found = mean_of([model(own, patient) for model, own in zip(models, images, strict=True)])
            rows.append(_row(found, threshold, [m for m, own in zip(order, images[0], strict=True) if len(own)]))
            predicted += 1
            if pages:
                draw_cam(pages / f"{len(rows):04d}_{name.replace('/', '_')[:100]}.png", models[0], images[0], rows[-1])
        if problems and (not skip or not rows):
            raise Problems(f"{source} (--skip leaves them out)", problems)
        pd.DataFrame(rows).to_csv(beside, index=False)
    for problem in problems:
        print(f"skipped: {problem}")
    return predicted


def _read_patient(files: list[list[Path]], sizes: list[int]) -> tuple[list[Images], list[str]]:
    """Images of each magnification at each model's size, and what could not be read."""
    problems: list[str] = []
    read: dict[int, Images] = {}
    for size in sorted(set(sizes)):
        errors, images = [], []
        for paths in files:
            got = read_images(paths, size)
            errors += [str(g) for g in got if isinstance(g, InputError)]
            kept = [g[0] for g in got if not isinstance(g, InputError)]
            images.append(np.stack(kept) if kept else np.empty((0, size, size, 3), np.uint8))
        problems, read[size] = errors, images
    return [read[size] for size in sizes], problems


def _row(found: Predicted, threshold: float, used: list[str]) -> dict[str, Any]:
    p = float(found.whole[0])
    row = {"patient": found.patients[0], "probability_malignant": round(p, 4), "class": CLASSES[int(p >= threshold)],
           "threshold": round(threshold, 4)}  # fmt: skip
    row |= {f"type_{name}": round(float(v), 4) for name, v in zip(TYPES, found.types[0], strict=True)}
    row["magnifications"] = "+".join(used)
    row |= {f"images_{m}": int((found.images["magnification"] == m).sum()) for m in found.magnifications}
    if found.importance is not None:
        row |= {f"importance_{m}": round(float(v), 4) for m, v in zip(found.magnifications, found.importance[0], strict=True)}
    return row


def evaluate_folder(runs: Sequence[Path], raw: Path, out: Path, *, device: str, params: BreakHis) -> dict[str, float]:
    """Measure the mean prediction of the runs on every patient of a labelled raw tree; writes `out` and returns the metrics.

    Patients that a run was trained on flatter it: give it a folder it has not seen.
    """
    models = load_models(runs, device)
    found, problems = read_tree(raw)
    if problems:
        raise Problems(str(raw), problems)
    order = models[0].magnifications
    seen: list[Predicted] = []
    names = sorted({image.patient for image in found if image.magnification in order})
    if not names:
        raise InputError(f"{raw}: no image at {', '.join(order)}, which the run was trained on")
    own = {name: [image for image in found if image.patient == name] for name in names}
    for name in names:  # one patient in memory at a time
        files = [[image.path for image in own[name] if image.magnification == m] for m in order]
        images, errors = _read_patient(files, [model.size for model in models])
        if errors:
            raise Problems(str(raw), errors)
        patient = Patients([name], [[np.arange(len(i)) for i in images[0]]])
        seen.append(mean_of([model(i, patient) for model, i in zip(models, images, strict=True)]))
    joined = Predicted(
        names, order, {s: np.concatenate([p.probability[s] for p in seen]) for s in seen[0].probability},
        np.concatenate([p.types for p in seen]), pd.concat([p.images for p in seen], ignore_index=True),
    )  # fmt: skip
    labels = np.array([CLASSES.index(own[name][0].tumour_class) for name in names])
    types = np.array([[np.mean([i.tumour_type == t for i in own[name]]) for t in TYPES] for name in names])
    threshold = float(np.mean([model.threshold for model in models]))
    return evaluate(joined, labels, types, threshold=threshold, record=read_record(runs[0]), out=out)
