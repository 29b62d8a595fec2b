"""Grad-CAM: which parts of an image are evidence of malignancy (Selvaraju et al. 2017, arXiv 1610.02391)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
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
    present = torch.tensor([[image is not None for image in images]], device=model.device)
    blank = np.zeros((model.size, model.size, 3), np.uint8)
    inputs = [model.net.normalise(torch.from_numpy(np.array(blank if i is None else i))[None].to(model.device)) for i in images]
    maps: list[NDArray[np.float64] | None] = []
    for m, image in enumerate(images):
        if image is None:
            maps.append(None)
            continue
        maps.append(_evidence(model.net, inputs, present, m))
    return maps


def _evidence(net: MagnificationNet, images: list[Tensor], present: Tensor, index: int) -> NDArray[np.float64]:
    """The map of one of the images `[1, 3, S, S]` from its backbone's last feature maps; 0 everywhere where nothing is evidence.

    MONAI's GradCAM leaves its hooks, and with them every image, in the network, and draws a map of zeros as one of ones."""
    found: list[Tensor] = []
    layer: Any = net.backbones[net.order[index]]._bn1
    hook = layer.register_forward_hook(lambda _module, _inputs, output: found.append(output))
    try:
        with torch.enable_grad():
            own = [image.clone().requires_grad_(m == index) for m, image in enumerate(images)]
            logit = net(own, present).classes[0, CLASSES.index("malignant")]
            gradient = torch.autograd.grad(logit, found[0])[0]
    finally:
        hook.remove()
    heat = (gradient.mean((2, 3), keepdim=True) * found[0]).sum(1, keepdim=True).relu().detach().float()
    heat = F.interpolate(heat, images[index].shape[2:], mode="bilinear", align_corners=False)[0, 0].double().cpu()
    return np.asarray(heat / heat.max() if heat.max() > 0 else heat)


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
