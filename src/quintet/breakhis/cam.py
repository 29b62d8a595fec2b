"""Grad-CAM: what in an image speaks for malignant (Selvaraju et al. 2017, arXiv 1610.02391)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quintet.breakhis.figures import cam_page
from quintet.breakhis.inference import Images, Model
from quintet.breakhis.metrics import Predicted
from quintet.breakhis.networks import MagnificationNet, normalise
from quintet.breakhis.sampling import Patients
from quintet.breakhis.tree import CLASSES

TITLE = "What speaks for malignant (Grad-CAM, each map scaled to its own range)"


def grad_cam(model: Model, images: list[NDArray[np.uint8] | None]) -> list[NDArray[np.float64] | None]:
    """What in each image `[S, S, 3]` of a quadruple speaks for malignant (Selvaraju et al. 2017), `[S, S]` in [0, 1]."""
    from monai.visualize import GradCAM

    present = torch.tensor([[image is not None for image in images]], device=model.device)
    blank = np.zeros((model.size, model.size, 3), np.uint8)
    inputs = [normalise(torch.from_numpy(np.array(blank if i is None else i))[None].to(model.device)) for i in images]
    maps: list[NDArray[np.float64] | None] = []
    for m, (name, image) in enumerate(zip(model.magnifications, images, strict=True)):
        if image is None:
            maps.append(None)
            continue
        cam = GradCAM(_OfOne(model.net, inputs, present, m), f"net.backbones.{name}._bn1")
        heat = cam(inputs[m].clone().requires_grad_(True), class_idx=CLASSES.index("malignant"))
        maps.append(1 - torch.as_tensor(heat)[0, 0].double().cpu().numpy())  # MONAI's default is 1 where it matters least
    return maps


class _OfOne(torch.nn.Module):
    """The class scores as a function of one of the images."""

    def __init__(self, net: MagnificationNet, images: list[Tensor], present: Tensor, which: int) -> None:
        super().__init__()
        self.net, self.images, self.present, self.which = net, images, present, which

    def forward(self, image: Tensor) -> Tensor:
        images = [image if m == self.which else other for m, other in enumerate(self.images)]
        return self.net(images, self.present).classes


def draw_cam(path: Path, model: Model, images: Images, row: dict[str, Any]) -> None:
    shown = [own[0] if len(own) else None for own in images]
    label = f"{row['patient']}: malignant {row['probability_malignant']:.2f}, {row['class']}"
    cam_page(
        path,
        {label: _pairs(model, shown)},
        model.magnifications,
        TITLE,
    )


def _pairs(model: Model, shown: list[NDArray[np.uint8] | None]) -> list[tuple[NDArray[np.uint8], NDArray[np.float64]] | None]:
    heat = grad_cam(model, shown)
    return [None if i is None or h is None else (i, h) for i, h in zip(shown, heat, strict=True)]


def draw_cams(
    path: Path, model: Model, predicted: Predicted, images: Images, patients: Patients, labels: NDArray[np.int64]
) -> None:
    """Grad-CAM of the surest right and of the most wrong patient of each class, of their first images."""
    distance = np.abs(predicted.whole - labels)
    right = (predicted.whole >= model.threshold) == labels
    rows = {}
    for k, name in enumerate(CLASSES):
        for kind, those in (("right", right), ("wrong", ~right)):
            members = np.flatnonzero(those & (labels == k))
            if not len(members):
                continue
            i = int(members[distance[members].argmin() if kind == "right" else distance[members].argmax()])
            shown = [own[r[0]] if len(r) else None for own, r in zip(images, patients.rows[i], strict=True)]
            label = f"{patients.names[i]}: {name}, {kind} ({predicted.whole[i]:.2f})"
            rows[label] = _pairs(model, shown)
    cam_page(path, rows, model.magnifications, TITLE)
