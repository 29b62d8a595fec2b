"""What this machine and environment are, and what is missing: `quintet doctor`."""

import importlib.util
import json
import os
import platform
import shlex
import shutil
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from quintet.files import md5
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


def examine_cache(root: Path) -> tuple[str, list[str]]:
    """A line on DVC's cache, and a sentence for each object whose content is not what its name says. DVC itself does not look
    again at an object that is write-protected: a disk's fault there would reach the results unseen."""
    from dvc.repo import Repo

    repo = Repo(str(root))
    cache = Path(repo.cache.local.path)
    objects = sorted(cache.glob("??/*"))
    wrong = [path for path in objects if md5(path) != path.parent.name + path.name.removesuffix(".dir")]
    holders = _holders(repo, cache) if wrong else {}
    said = []
    for path in wrong:
        remedy = shlex.join(["rm", "-rf", str(path), *holders.get(path.parent.name + path.name, [])])
        said.append(f"{path} is damaged; `{remedy}`, then `dvc pull` or `dvc repro` makes it again")
    return f"DVC's cache {cache}: {len(objects)} objects, {len(wrong)} damaged", said


def _holders(repo: Any, cache: Path) -> dict[str, list[str]]:
    """md5 -> outputs that are it or, folders, hold it; not those that no stage makes again (frozen, `dvc add`)."""
    found: dict[str, list[str]] = {}
    for out in (out for stage in repo.index.stages if stage.cmd and not stage.frozen for out in stage.outs if out.hash_info):
        digest = out.hash_info.value
        listing = cache / digest[:2] / digest[2:]
        inside = []
        if listing.suffix == ".dir" and listing.is_file():
            with suppress(ValueError, KeyError, TypeError):  # the listing itself is damaged
                inside = [entry["md5"] for entry in json.loads(listing.read_bytes())]
        for name in {digest, *inside}:
            found.setdefault(name, []).append(out.fs_path)
    return found
