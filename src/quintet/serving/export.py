"""`quintet export`: a trained network as an ONNX file, for programs without PyTorch.

The file holds the network alone. What happens to an image before and after it (size, spacing, normalisation, mirror images,
windows) is in its metadata, as values in JSON; docs/serving.md says how to use them.
"""

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quintet.errors import InputError
from quintet.files import atomic_file
from quintet.runs import Record
from quintet.study import load_study

TOLERANCE = 1e-4  # between PyTorch and onnxruntime
BATCH = 2  # of the input that both are compared on


class _Points(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = self.net(images)
        return found.points, found.spread


class _Territories(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        probabilities: Tensor = self.net(images)[0].sigmoid()
        return probabilities


@dataclass(frozen=True)
class Export:
    """`wrap`: the network with plain outputs. `shape`: of one input, from the build values. `about`: the build values that a
    program needs."""

    wrap: Callable[[nn.Module], nn.Module]
    shape: Callable[[dict[str, Any]], tuple[int, ...]]
    outputs: tuple[str, ...]
    about: tuple[str, ...]


EXPORTS = {
    "landmarks": Export(_Points, lambda b: (1, b["size"], b["size"]), ("points", "spread"), ("size", "clahe")),
    "perfusion": Export(
        _Territories,
        lambda b: (len(b["channels"]), *b["patch"]),
        ("probabilities",),
        ("channels", "patch", "spacing_mm", "normalisation", "mirrors"),
    ),
}


def export(run: Path, out: Path) -> float:
    """Write the network of a run to an ONNX file with any batch size; returns the largest difference from PyTorch on a random
    input. Raises InputError if the study has no export, packages are missing, or the difference exceeds TOLERANCE."""
    record = Record.load(run)
    if record.study not in EXPORTS:
        raise InputError(f"{run}: a run of {record.study}; only {' and '.join(EXPORTS)} can be exported")
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]:
        raise InputError(f"{', '.join(missing)} not installed; pip install -c constraints.txt 'quintet[onnx]'")
    chosen = EXPORTS[record.study]
    model = load_study(record.study).load_models([run], "cpu")[0]
    net = chosen.wrap(model.net).eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    example = torch.rand(BATCH, *chosen.shape(model.build), generator=torch.Generator().manual_seed(0))
    about = {name: model.build[name] for name in chosen.about} | {
        name: getattr(model, name) for name in ("mirror_average", "template") if hasattr(model, name)
    }
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which no network here needs
    warnings.filterwarnings("ignore", module="torch|copyreg")
    with atomic_file(out) as temporary:
        program = torch.onnx.export(
            net,
            (example,),
            dynamo=True,
            input_names=["images"],
            output_names=list(chosen.outputs),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,
        )
        assert program is not None
        program.model.metadata_props["quintet"] = json.dumps({"study": record.study, "key": record.key} | about)
        program.save(temporary)
        difference = _difference(net, example, temporary)
        if difference > TOLERANCE:
            raise InputError(f"{out}: onnxruntime differs from PyTorch by {difference:.2g}, more than {TOLERANCE:g}; not written")
    return difference


def _difference(net: nn.Module, example: Tensor, path: Path) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = net(example)
    expected = expected if isinstance(expected, tuple) else (expected,)
    found = session.run(None, {"images": example.numpy()})
    return max(float(np.abs(a.numpy() - b).max()) for a, b in zip(expected, found, strict=True))
