"""A trained run at work: images -> landmarks and the signs of doubt."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quintet.errors import InputError
from quintet.landmarks.anatomy import LANDMARKS, PIXELS, SWAPPED, mirror, project_on_template
from quintet.landmarks.augmentation import mirror_images
from quintet.landmarks.evaluation import Calibration, Predicted
from quintet.landmarks.networks import LandmarkNet
from quintet.training.hardware import resolve_device
from quintet.training.models import load_network

BATCH = 32
NO_CALIBRATION = Calibration([0.0] * 4, [1.0] * LANDMARKS)


@dataclass(frozen=True)
class Model:
    net: LandmarkNet
    build: dict[str, Any]  # size, clahe: the preprocessing it was trained with
    device: str
    mirror_average: bool
    template: bool
    calibration: Calibration

    @staticmethod
    def load(run: Path, device: str, **settings: Any) -> "Model":
        """Rebuild a run's network; `settings` (mirror_average, template) default to those the run was evaluated with, and with
        these comes its calibration."""
        net, build = load_network(
            run / "model" / "model.pt",
            "landmarks",
            "clahe",
            lambda build: LandmarkNet(**{k: build[k] for k in ("arch", "head", "attention", "width", "dropout")}),
        )
        evaluated = run / "evaluation" / "inference.json"
        if not settings and not evaluated.is_file():
            raise InputError(
                f"{run}: trained but not evaluated, so its uncertainty is not calibrated; run the evaluation stage first"
            )
        chosen = settings or json.loads(evaluated.read_text(encoding="utf-8"))
        chosen["calibration"] = Calibration(**chosen["calibration"]) if "calibration" in chosen else NO_CALIBRATION
        device = resolve_device(device)
        return Model(net.to(device, memory_format=torch.channels_last), build, device, **chosen)  # type: ignore[call-overload]

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> Predicted:
        """Predict `[N, size, size]`; with mirror_average the mirror image votes too, and its disagreement is a sign of doubt."""
        parts = [self._batch(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
        points, spread, disagreement = (np.concatenate(part) for part in zip(*parts, strict=True))
        projected = project_on_template(points)
        residual = np.linalg.norm(projected - points, axis=-1)
        signs = np.stack([spread.mean(1), disagreement.mean(1), residual.mean(1)], axis=1) * PIXELS
        return Predicted(projected if self.template else points, signs)

    def _batch(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        x = (torch.from_numpy(np.array(images))[:, None].to(self.device).float() / 255).contiguous(
            memory_format=torch.channels_last
        )
        points, spread = (t.double().cpu().numpy() for t in self.net(x))
        if not self.mirror_average:
            return points, spread, np.zeros_like(spread)
        other, other_spread = (t.double().cpu().numpy() for t in self.net(mirror_images(x)))
        other = mirror(other)
        return (points + other) / 2, (spread + other_spread[:, SWAPPED]) / 2, np.linalg.norm(points - other, axis=-1) / 2
