"""Where a training starts: random weights, ImageNet, a state dict, a checkpoint of the reference, or an earlier run."""

import re
from pathlib import Path

import torch
from torch import Tensor

from quintet.backbones import NOT_BACKBONE, RESNET18_URL
from quintet.errors import InputError
from quintet.files import md5
from quintet.landmarks.model.networks import LandmarkNet
from quintet.params import LandmarksConfig
from quintet.training.models import load_model, load_pretrained_weights

CHECKPOINT = "model_state_dict"  # where a checkpoint of the reference keeps its weights
# Its names after any prefixes (module., model., backbone., ...): torchvision's for the backbone, a number for a layer of the head
BACKBONE_NAME = re.compile(r"(?:\w+\.)*?((?:conv1|bn1|layer[1-4])\..+)")
HEAD_NAME = re.compile(r"(?:\w+\.)+(\d+\.(?:weight|bias))")


def initialize(net: LandmarkNet, config: LandmarksConfig, weights: str, seed: int) -> str:
    """Load the weights of an earlier phase, or pretrained ones, if the configuration starts from any; returns their origin."""
    start = config.start(seed)
    if start is not None:
        # a later phase may add attention, whose weights keep their initial values; all others must exist and match
        _load(net, load_model(start / "model" / "model.pt")[0], str(start), optional=("attention.",))
        return str(start)
    if weights == "none" or config.arch != "resnet18":  # there are pretrained weights for ResNet-18 only
        return "random"
    if (state := _reference_weights(Path(weights))) is None:
        return load_pretrained_weights(net.backbone.net, weights, RESNET18_URL, drop=NOT_BACKBONE)
    optional: tuple[str, ...] = ("attention.",)
    if config.head != "regression":  # the reference has no other head
        state = {name: value for name, value in state.items() if not name.startswith("head.")}
        optional = ("attention.", "head.")
    _load(net, state, f"weights={weights}", optional=optional)
    return f"{weights} (md5 {md5(Path(weights))})"


def _reference_weights(path: Path) -> dict[str, Tensor] | None:
    """The weights of a checkpoint of the reference under our names; None for any other file."""
    if not path.is_file():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file raises many kinds of exceptions
        raise InputError(
            f"weights={path}: not a state dict, or one with other objects beside it ({str(error).splitlines()[0]}); where it was "
            f"made, save only its weights: torch.save({{'{CHECKPOINT}': checkpoint['{CHECKPOINT}']}}, ...)"
        ) from None
    if not isinstance(saved, dict) or CHECKPOINT not in saved:
        return None
    return {_our_name(name): value for name, value in saved[CHECKPOINT].items()}


def _our_name(name: str) -> str:
    if found := BACKBONE_NAME.fullmatch(name):
        return f"backbone.net.{found[1]}"
    if found := HEAD_NAME.fullmatch(name):
        return f"head.layers.{found[1]}"
    return name


def _load(net: LandmarkNet, state: dict[str, Tensor], origin: str, *, optional: tuple[str, ...]) -> None:
    """Fill the network; every weight must exist and match, except those whose names begin with one of `optional`."""
    try:
        missing, unknown = net.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise InputError(f"{origin} does not fit the network (is its arch, head or width different?): {error}") from None
    missing = [name for name in missing if not name.startswith(optional) and not name.endswith("num_batches_tracked")]
    if unknown or missing:
        raise InputError(f"{origin} does not fit the network: missing {missing[:5]}, unexpected {unknown[:5]}")
