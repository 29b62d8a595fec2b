"""What this machine and environment are, and what is missing: `quintet doctor`."""

import importlib.util
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

from quintet.runs import PACKAGES


def examine(root: Path) -> tuple[str, list[str]]:
    """A report of several lines, and one sentence per missing thing."""
    import torch

    from quintet import params, tracking
    from quintet.training.hardware import resolve_device, resolve_precision

    missing = []
    lines = [f"quintet {metadata.version('quintet')} in {root}", f"python {platform.python_version()}, {platform.platform()}"]
    for name in (*PACKAGES, "albumentations", "efficientnet-pytorch"):
        try:
            lines.append(f"  {name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(f"{name} (make repro installs it)")
    device = resolve_device("auto")
    lines.append(f"device {device}, automatic precision {resolve_precision('auto', device)}, {torch.get_num_threads()} threads")
    if device == "cuda":
        lines.append(f"  {torch.cuda.get_device_name()}, {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB")
    lines.append(f"disk {shutil.disk_usage(root).free / 2**30:.0f} GiB free, {os.cpu_count()} cores")
    lines.append(f"MLflow store {tracking.tracking_uri()}")
    for command in ("dvc", "git"):
        if not shutil.which(command):
            missing.append(f"the command {command} (make puts the environment's programs on PATH; or activate .venv)")
    if importlib.util.find_spec("torchvision") is not None:
        missing.append(
            "a clean environment: torchvision is installed, and a broken one stops lightning (pip uninstall torchvision)"
        )
    params.load(root / "params.yaml")
    lines.append("params.yaml is valid")
    return "\n".join(lines), missing
