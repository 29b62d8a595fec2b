"""Grad-CAM: which parts of an image are evidence of malignancy (Selvaraju et al. 2017, arXiv 1610.02391)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quintet.breakhis.data.classes import CLASSES
from quintet.breakhis.data.sampling import PatientRows
from quintet.breakhis.evaluation.figures import ImageWithMap, plot_cams
from quintet.breakhis.evaluation.inference import Images, Model
from quintet.breakhis.evaluation.metrics import Predicted
from quintet.breakhis.model.networks import MagnificationNet

TITLE = "Evidence for malignant (Grad-CAM, each map scaled to its own range)"


def grad_cam(model: Model, images: list[NDArray[np.uint8] | None]) -> list[NDArray[np.float64] | None]:
    """The evidence for malignant in each image `[S, S, 3]` of a quadruple (None: absent), as maps `[S, S]` in [0, 1]."""
    from monai.visualize import GradCAM

    present = torch.tensor([[image is not None for image in images]], device=model.device)
    blank = np.zeros((model.size, model.size, 3), np.uint8)
    inputs = [model.net.normalise(torch.from_numpy(np.array(blank if i is None else i))[None].to(model.device)) for i in images]
    maps: list[NDArray[np.float64] | None] = []
    for m, (name, image) in enumerate(zip(model.magnifications, images, strict=True)):
        if image is None:
            maps.append(None)
            continue
        # MONAI gives the network back in the mode of its wrapper: in training mode, later predictions would be wrong
        cam = GradCAM(_SingleInput(model.net, inputs, present, m).eval(), f"net.backbones.{name}._bn1")
        heat = cam(inputs[m].clone().requires_grad_(True), class_idx=CLASSES.index("malignant"))
        maps.append(1 - torch.as_tensor(heat)[0, 0].double().cpu().numpy())  # MONAI's default is 1 where it matters least
    return maps


class _SingleInput(torch.nn.Module):
    """The class logits as a function of one of the images."""

    def __init__(self, net: MagnificationNet, images: list[Tensor], present: Tensor, index: int) -> None:
        super().__init__()
        self.net, self.images, self.present, self.index = net, images, present, index

    def forward(self, image: Tensor) -> Tensor:
        images = [image if m == self.index else other for m, other in enumerate(self.images)]
        return self.net(images, self.present).classes


def plot_patient_cam(path: Path, model: Model, images: Images, row: dict[str, Any]) -> None:
    """Grad-CAM of the first image at each magnification of one patient, titled by its `row` of the prediction table."""
    first = [stack[0] if len(stack) else None for stack in images]
    label = f"{row['patient']}: malignant {row['probability_malignant']:.2f}, {row['class']}"
    plot_cams(path, {label: _with_maps(model, first)}, model.magnifications, TITLE)


def _with_maps(model: Model, images: list[NDArray[np.uint8] | None]) -> list[ImageWithMap]:
    maps = grad_cam(model, images)
    return [None if i is None or m is None else (i, m) for i, m in zip(images, maps, strict=True)]


def plot_grad_cam(
    path: Path, model: Model, predicted: Predicted, images: Images, patients: PatientRows, labels: NDArray[np.int64]
) -> None:
    """Grad-CAM of the first images of four patients: in each class, the correct one with the smallest error and the wrong one
    with the largest."""
    error = np.abs(predicted.malignant - labels)
    correct = (predicted.malignant >= model.threshold) == labels
    rows = {}
    for k, name in enumerate(CLASSES):
        for kind, members in (("correct", correct), ("wrong", ~correct)):
            candidates = np.flatnonzero(members & (labels == k))
            if not len(candidates):
                continue
            i = int(candidates[error[candidates].argmin() if kind == "correct" else error[candidates].argmax()])
            first = [stack[r[0]] if len(r) else None for stack, r in zip(images, patients.rows[i], strict=True)]
            rows[f"{patients.names[i]}: {name}, {kind} ({predicted.malignant[i]:.2f})"] = _with_maps(model, first)
    plot_cams(path, rows, model.magnifications, TITLE)
