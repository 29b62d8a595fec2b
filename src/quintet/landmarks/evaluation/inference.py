"""Inference with a trained run: images to landmarks and uncertainty features."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from quintet.errors import InputError
from quintet.files import write_json
from quintet.landmarks.data.anatomy import LANDMARKS, PIXELS, SWAPPED, mirror, project_on_template
from quintet.landmarks.data.prepared import Prepared
from quintet.landmarks.evaluation.scores import Calibration, Predicted, evaluate
from quintet.landmarks.model.augmentation import mirror_images
from quintet.landmarks.model.networks import LandmarkNet
from quintet.params import Compute
from quintet.params.landmarks import LandmarksEvaluation
from quintet.runs import Record
from quintet.training.hardware import resolve_device
from quintet.training.models import load_network

BATCH = 32
NO_CALIBRATION = Calibration([0.0] * 4, [1.0] * LANDMARKS)


@dataclass(frozen=True)
class Model:
    net: LandmarkNet
    build: dict[str, Any]  # size, clahe: the preprocessing of its training images
    device: str
    mirror_average: bool
    template: bool
    calibration: Calibration

    @staticmethod
    def load(run: Path, device: str, **settings: Any) -> "Model":
        """Rebuild a run's network with these `settings` (mirror_average, template) and no calibration. Without `settings`, use
        the settings and calibration of the run's evaluation; raises InputError if there is none."""
        net, build = load_network(
            run / "model" / "model.pt",
            "landmarks",
            "clahe",
            lambda build: LandmarkNet(**{k: build[k] for k in ("arch", "head", "attention", "width", "dropout")}),
        )
        saved = run / "evaluation" / "inference.json"
        if not settings and not saved.is_file():
            raise InputError(
                f"{run}: trained but not evaluated, so its uncertainty is not calibrated; run the evaluation stage first"
            )
        chosen = settings or json.loads(saved.read_text(encoding="utf-8"))
        chosen["calibration"] = Calibration(**chosen["calibration"]) if "calibration" in chosen else NO_CALIBRATION
        device = resolve_device(device)
        return Model(net.to(device, memory_format=torch.channels_last), build, device, **chosen)  # type: ignore[call-overload]

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8], sizes: NDArray[np.int64]) -> Predicted:
        """Predict the landmarks of images `[N, size, size]`, whose originals have `sizes` `[N, 2]` (width, height): the right
        angles of the template are theirs. With mirror_average, the mirror images are predicted too; the disagreement between the
        two predictions is an uncertainty feature."""
        parts = [self._batch(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
        points, spread, disagreement = (np.concatenate(part) for part in zip(*parts, strict=True))
        projected = project_on_template(points, sizes)
        residual = np.linalg.norm(projected - points, axis=-1)
        uncertainty = np.stack([spread.mean(1), disagreement.mean(1), residual.mean(1)], axis=1) * PIXELS
        return Predicted(projected if self.template else points, uncertainty)

    def _batch(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        x = (torch.from_numpy(np.array(images))[:, None].to(self.device).float() / 255).contiguous(
            memory_format=torch.channels_last
        )
        points, spread = (t.double().cpu().numpy() for t in self.net(x)[:2])
        if not self.mirror_average:
            return points, spread, np.zeros_like(spread)
        mirrored, mirrored_spread = (t.double().cpu().numpy() for t in self.net(mirror_images(x))[:2])
        mirrored = mirror(mirrored)
        return (points + mirrored) / 2, (spread + mirrored_spread[:, SWAPPED]) / 2, np.linalg.norm(points - mirrored, axis=-1) / 2


def average(predictions: Sequence[Predicted]) -> Predicted:
    """The mean prediction. (The mean of the heatmaps would give the same points: their mean position is linear in them.)"""
    return Predicted(
        np.mean([p.points for p in predictions], axis=0),
        np.mean([p.uncertainty for p in predictions], axis=0),
    )


def evaluate_runs(
    runs: Sequence[Path],
    data: Prepared,
    out: Path,
    evaluation: LandmarksEvaluation,
    compute: Compute,
    *,
    record: Record,
    every_image: bool = False,
) -> dict[str, float]:
    """Calibrate the mean prediction of trained runs on the validation images and score it on the test images; writes into `out`,
    returns metrics."""
    settings = evaluation.model_dump()
    models = [Model.load(run, compute.device, **settings) for run in runs]
    valid, test = data.rows("valid"), data.rows("test")
    sizes = data.table[["width", "height"]].to_numpy()
    calibration = Calibration.fit(average([model(data.images[valid], sizes[valid]) for model in models]), data.points[valid])
    predicted = average([model(data.images[test], sizes[test]) for model in models])
    metrics = evaluate(
        data,
        test,
        predicted.points,
        calibration(predicted.uncertainty),
        record=record,
        out=out,
        every_image=every_image,
        history=pd.read_csv(runs[0] / "model" / "history.csv") if len(runs) == 1 else None,
    )
    write_json(out / "inference.json", settings | {"calibration": asdict(calibration)})
    return metrics
