"""Training on frozen encoders: those of another run, and the tokens that they give each patient."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quintet.errors import InputError
from quintet.fusion.data.prepared import Prepared
from quintet.fusion.model.datasets import Patients
from quintet.fusion.model.networks import FusionNet
from quintet.params.fusion import IMPUTES
from quintet.training.models import load_model

CHUNK = 64  # patients that the encoders see at a time


def with_all_modalities(data: Prepared, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of `rows` who have every modality."""
    return rows[data.present[rows].all(1)]


def freeze_encoders(net: FusionNet, start: Path, about: dict[str, Any]) -> None:
    """Take the encoders of the run `start`; they are not trained any further."""
    state, build = load_model(start / "model" / "model.pt")
    if any(build["about"][name] != about[name] for name in about if name != "sampling_steps"):
        raise InputError(f"{start} was trained on data that were split or prepared in another way; train it again")
    prefix = "encoders."
    net.encoders.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    net.encoders.requires_grad_(False).eval()


@torch.no_grad()
def fit_tokens(net: FusionNet, patients: Patients, learning: NDArray[np.int64]) -> Tensor:
    """The tokens `[N, K, D]` of all patients. Their components, and how missing ones are completed, are learnt from the rows
    `learning`."""
    rows = list(range(len(patients.names)))
    parts = [patients[rows[start : start + CHUNK]] for start in rows[::CHUNK]]
    encoded = [net.encoders.features(p["volumes"], p["vectors"], p["present"]) for p in parts]
    features, present = [torch.cat(f) for f in zip(*encoded, strict=True)], patients.present
    if net.reduce is not None:
        net.reduce.fit(net.encoders.tokens(features, present)[learning], present[learning])
    tokens = net.tokens(features, present)
    if net.method in IMPUTES:
        with torch.enable_grad():
            net.fuse.fit(tokens[learning], present[learning])
        net.fuse.requires_grad_(False)
    return tokens
