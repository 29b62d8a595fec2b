"""Saved models (weights and the values that rebuild the network), and pretrained weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch
from torch import Tensor, nn

from quintet.errors import InputError
from quintet.files import md5

Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class TrainedModel:
    """The result of training. `build`: the values that rebuild the network, as plain types."""

    weights: Mapping[str, Mapping[str, Tensor]]  # file name -> state dict; "model" is the one that is evaluated
    build: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame]  # file name -> table; "history" has one row per epoch

    def save(self, folder: Path) -> None:
        for name, state in self.weights.items():
            save_model(folder / f"{name}.pt", state, self.build)
        for name, table in self.tables.items():
            table.to_csv(folder / f"{name}.csv", index=False)


def save_model(path: Path, state: Mapping[str, Tensor], build: Mapping[str, Any]) -> None:
    """Save the weights and the values that rebuild the network, as plain types, so that it loads with weights_only=True."""
    buffer = BytesIO()  # if the disk is full, torch's own writer reports neither the file nor the reason
    torch.save({"state_dict": dict(state), "build": dict(build)}, buffer)
    path.write_bytes(buffer.getbuffer())


def load_model(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict and the build values that `save_model` wrote."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no trained model there; run its training stage (a baseline has no model and cannot predict)")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        return saved["state_dict"], saved["build"]
    except Exception as error:  # a damaged file raises many kinds of exceptions
        raise InputError(f"{path}: not a model of Quintet, or damaged ({str(error).splitlines()[0]}); train it again") from None


def load_network(path: Path, study: str, key: str, make: Callable[[dict[str, Any]], Net]) -> tuple[Net, dict[str, Any]]:
    """The network that `make` builds from a saved model's build values, with its weights, in evaluation mode; and these values.

    `key`: a build value that only models of `study` have.
    """
    state, build = load_model(path)
    if key not in build:
        raise InputError(f"{path}: a model of another study; give a run of runs/{study}")
    try:
        net = make(build)
        net.load_state_dict(state)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{path}: damaged ({str(error).splitlines()[0]}); train it again") from None
    return net.eval(), build


def weight_files(weights: str) -> dict[str, Path]:
    """The file of pretrained weights, an input of the run: its hash is part of the run's key, so new content makes a new run."""
    return {"weights": Path(weights)} if Path(weights).is_file() else {}


def load_pretrained_weights(module: nn.Module, path: str, url: str, *, drop: Sequence[str] = ()) -> str:
    """Fill `module` from `imagenet` (downloaded from `url`, hash checked), or from a local state dict; returns their origin.

    There is no silent fallback: a missing file, a machine without internet or weights that do not fit raise InputError.
    """
    if path == "imagenet":
        try:
            state = torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
        except Exception as error:  # being offline raises several kinds of exceptions
            raise InputError(
                f"weights=imagenet: cannot download {url} ({error}); without internet give a local file instead"
            ) from None
        origin = url
    else:
        if not Path(path).is_file():
            raise InputError(f"weights={path}: no such file; choose imagenet, none or the path of a state dict")
        try:
            state = dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # a foreign file raises many kinds of exceptions
            raise InputError(f"weights={path}: not a state dict ({str(error).splitlines()[0]})") from None
        origin = f"{path} (md5 {md5(Path(path))})"
    state = {name: value for name, value in state.items() if not name.startswith(tuple(drop))} if drop else state
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"weights={path}: these weights do not fit the network: {error}") from None
    return origin
