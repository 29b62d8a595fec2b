"""Atomic outputs (written under a temporary name, then renamed), MD5 sums and the repository root."""

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
    """Yield an empty temporary folder next to `target`; it replaces `target` only if the block ends without an error.

    Raises InputError if `target` is a file, cannot be created or replaced, or contains the current folder.
    """
    target = Path(target)
    target = target.resolve() if target.is_symlink() else target
    if os.path.ismount(target):
        raise InputError(f"{target} is a mounted disk, which cannot be replaced; choose a folder inside it")
    if Path.cwd().is_relative_to(target.resolve()):
        raise InputError(f"{target}: the current folder is inside it and would be replaced; choose another folder for results")
    if target.is_file():
        raise InputError(f"{target} is a file; choose a folder for the results")
    temporary = _temporary_path(target, target.name)
    _create_folder(temporary)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    try:
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    except OSError as error:
        raise InputError(f"{target} cannot be replaced ({error.strerror}); the results are in {temporary}") from None


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path next to `target`, with the same suffix; it is renamed to `target` only if the block ends without
    an error. Parent folders are created. Raises InputError if `target` is a folder or its parent cannot be created."""
    target = Path(target)
    if target.is_dir():
        raise InputError(f"{target} is a folder; choose a file for the results")
    _create_folder(target.parent)
    temporary = _temporary_path(target, target.stem, target.suffix)
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _temporary_path(target: Path, stem: str, suffix: str = "") -> Path:
    """A hidden path that contains this process's id. Leftovers of processes that no longer run are deleted."""
    for leftover in target.parent.glob(f".{glob.escape(stem)}.*.part{glob.escape(suffix)}"):
        pid = leftover.name.removeprefix(f".{stem}.").partition(".")[0]
        if pid.isdigit() and (int(pid) == os.getpid() or not psutil.pid_exists(int(pid))):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    return target.with_name(f".{stem}.{os.getpid()}.part{suffix}")


def _create_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be created ({error.strerror}); choose another place for the results") from None


def csv_file(path: Path) -> Path:
    """The path of a table to write. Raises InputError if its name ends in anything but .csv."""
    if path.suffix.lower() != ".csv":
        raise InputError(f"{path}: the table is written as CSV; choose a name that ends in .csv")
    return path


def reject_overlap(first: Path, second: Path) -> None:
    """Raise InputError if two folders are the same or one contains the other: writing results replaces a whole folder."""
    a, b = Path(first).resolve(), Path(second).resolve()
    if a.is_relative_to(b) or b.is_relative_to(a):
        raise InputError(f"{first} and {second}: one is inside the other and would be replaced with it; choose separate folders")


def md5(path: Path) -> str:
    """MD5 of a file, or of a folder's files and their relative paths, without hidden files and unfinished `*.part` files."""
    path = Path(path)
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    digest = hashlib.md5(usedforsecurity=False)
    for child in sorted(p for p in path.rglob("*") if p.is_file() and not any(map(is_temporary, p.relative_to(path).parts))):
        digest.update(f"{child.relative_to(path).as_posix()} {md5(child)}\n".encode())
    return digest.hexdigest()


def is_temporary(name: str) -> bool:
    """Whether a file or folder of this name is hidden or unfinished."""
    return name.startswith(".") or name.endswith(".part")


def repository_root() -> Path:
    """The main checkout: $DVC_ROOT in queued and temporary experiments (which run in a copy); otherwise the current folder or
    its nearest parent with a dvc.yaml; otherwise the current folder."""
    if root := os.environ.get("DVC_ROOT"):
        return Path(root)
    current = Path.cwd()
    return next((folder for folder in (current, *current.parents) if (folder / "dvc.yaml").is_file()), current)
