"""Describe this machine and environment, and find what is missing or damaged: `quintet doctor`."""

import importlib.util
import json
import os
import platform
import shlex
import shutil
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from quintet.files import md5
from quintet.runs import PACKAGES


def examine(root: Path) -> tuple[str, list[str]]:
    """A report of several lines, and one sentence per missing item. Raises InputError if params.yaml is not valid."""
    import torch

    from quintet import params, tracking
    from quintet.training.hardware import resolve_device, resolve_precision

    missing = []
    package = Path(__file__).resolve().parents[2]
    if (root / "src" / "quintet").is_dir() and package != root.resolve():
        missing.append(
            f"this checkout's own package: Python imports that of {package} (`pip install -e .` in its own environment)"
        )
    lines = [f"quintet {metadata.version('quintet')} in {package}", f"python {platform.python_version()}, {platform.platform()}"]
    for name in (*PACKAGES, "albumentations", "efficientnet-pytorch"):
        try:
            lines.append(f"  {name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(f"{name} (`make repro` installs it)")
    device = resolve_device("auto")
    lines.append(f"device {device}, automatic precision {resolve_precision('auto', device)}, {torch.get_num_threads()} threads")
    if device == "cuda":
        lines.append(f"  {torch.cuda.get_device_name()}, {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB")
    lines.append(f"disk {shutil.disk_usage(root).free / 2**30:.0f} GiB free, {os.cpu_count()} cores")
    lines.append(f"MLflow store {tracking.without_credentials(tracking.tracking_uri())}")
    for command in ("dvc", "git"):
        if not shutil.which(command):
            missing.append(f"the command {command} (activate .venv, or use make, which puts the environment's programs on PATH)")
    if importlib.util.find_spec("torchvision") is not None:
        missing.append(
            "an environment without torchvision: Lightning fails if torchvision is broken (run `pip uninstall torchvision`)"
        )
    params.load(root / "params.yaml")
    lines.append("params.yaml is valid")
    return "\n".join(lines), missing


def examine_cache(root: Path) -> tuple[str, list[str]]:
    """A line about DVC's cache, and one sentence per object whose content does not match its name.

    DVC itself does not check write-protected objects again, so that a disk fault would reach the results unnoticed.
    """
    from quintet.pipeline.dvc import cache_folder

    cache = cache_folder(root)
    objects = sorted(cache.glob("??/*"))
    damaged = [path for path in objects if md5(path) != path.parent.name + path.name.removesuffix(".dir")]
    outputs = _outputs_by_object(root, cache) if damaged else {}
    problems = []
    for path in damaged:
        remedy = shlex.join(["rm", "-rf", str(path), *outputs.get(path.parent.name + path.name, [])])
        problems.append(f"{path} is damaged; run `{remedy}`, then `dvc pull` or `dvc repro` to restore it")
    return f"DVC's cache {cache}: {len(objects)} objects, {len(damaged)} damaged", problems


def _outputs_by_object(root: Path, cache: Path) -> dict[str, list[str]]:
    """MD5 of an object -> the reproducible outputs that consist of it or, for folders, contain it."""
    from quintet.pipeline.dvc import reproducible_outputs

    outputs: dict[str, list[str]] = {}
    for digest, path in reproducible_outputs(root):
        listing = cache / digest[:2] / digest[2:]
        contents = []
        if listing.suffix == ".dir" and listing.is_file():
            with suppress(ValueError, KeyError, TypeError):  # the folder's listing itself is damaged
                contents = [entry["md5"] for entry in json.loads(listing.read_bytes())]
        for name in {digest, *contents}:
            outputs.setdefault(name, []).append(path)
    return outputs
