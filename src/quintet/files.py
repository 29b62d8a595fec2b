"""Outputs are written whole or not at all: write beside, then rename."""

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from quintet.errors import InputError


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`; it takes target's name only if the block ends without an error."""
    target = Path(target)
    if Path.cwd().is_relative_to(target.resolve()):
        raise InputError(f"{target}: the current folder lies in it and would be replaced; name another folder for the results")
    if target.is_file():
        raise InputError(f"{target}: a file, expected a folder for the results; name another one")
    beside = _beside(target, target.name)
    _make(beside)
    try:
        yield beside
        shutil.rmtree(target, ignore_errors=True)
        beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a path beside `target`, with the same suffix; it is renamed to target if the block ends without an error."""
    target = Path(target)
    if target.is_dir():
        raise InputError(f"{target}: a folder, expected a file for the results; name another one")
    _make(target.parent)
    beside = _beside(target, target.stem, target.suffix)
    try:
        yield beside
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file, whole."""
    with atomic_file(path) as beside:
        beside.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _beside(target: Path, stem: str, suffix: str = "") -> Path:
    """A hidden name for this process's work; what killed processes left under such names is removed."""
    for left in target.parent.glob(f".{glob.escape(stem)}.*.part{glob.escape(suffix)}"):
        pid = left.name.removeprefix(f".{stem}.").partition(".")[0]
        if pid.isdigit() and (int(pid) == os.getpid() or not psutil.pid_exists(int(pid))):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    return target.with_name(f".{stem}.{os.getpid()}.part{suffix}")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); name another place for the results") from None


def refuse_overlap(one: Path, other: Path) -> None:
    """Raise if one of two folders is or holds the other: results replace a folder as a whole."""
    a, b = Path(one).resolve(), Path(other).resolve()
    if a.is_relative_to(b) or b.is_relative_to(a):
        raise InputError(f"{one} and {other}: one lies in the other, and would be replaced with it; name separate folders")


def md5(path: Path) -> str:
    """MD5 of a file, or of a folder's files with their relative names (hidden ones and leftovers `*.part` excluded)."""
    path = Path(path)
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    whole = hashlib.md5(usedforsecurity=False)
    for child in sorted(p for p in path.rglob("*") if p.is_file() and not any(map(is_temporary, p.relative_to(path).parts))):
        whole.update(f"{child.relative_to(path).as_posix()} {md5(child)}\n".encode())
    return whole.hexdigest()


def is_temporary(name: str) -> bool:
    """Whether a file or folder of this name is hidden or work that has not ended."""
    return name.startswith(".") or name.endswith(".part")


def repository_root() -> Path:
    """The main checkout: $DVC_ROOT in queued and temporary experiments (they run in a copy), else the nearest folder upwards
    with a dvc.yaml, else the current one."""
    if root := os.environ.get("DVC_ROOT"):
        return Path(root)
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "dvc.yaml").is_file()), here)
