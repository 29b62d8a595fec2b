"""Walk a user's folder alike in all studies: which files are there, and which of them are passed over."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from quintet.errors import InputError, InputProblemsError

NO_DATA = {"__macosx", "thumbs.db", "desktop.ini", "dicomdir"}  # names that systems and archives leave


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's: hidden (macOS writes ._NAME beside each file), or left by a system."""
    return name.startswith(".") or name.lower() in NO_DATA


def files_below(folder: Path) -> list[Path]:
    """Every file below a folder, sorted, also through links to folders, without those that `is_hidden` names.

    Raises InputError for a folder that cannot be listed, which would otherwise count as empty, and for names that are not UTF-8.
    """
    found, visited = [], set[str]()
    for parent, folders, names in os.walk(folder, onerror=refuse_unlistable, followlinks=True):
        folders[:] = [name for name in folders if not is_hidden(name)]
        if (real := os.path.realpath(parent)) in visited:  # a link to a parent folder
            folders.clear()
            continue
        visited.add(real)
        found += [Path(parent) / name for name in names if not is_hidden(name)]
    return _check_names(folder, sorted(found))


def entries(folder: Path) -> list[Path]:
    """The files and folders in a folder, sorted, without those that `is_hidden` names. Raises InputError like `files_below`."""
    try:
        found = [path for path in Path(folder).iterdir() if not is_hidden(path.name)]
    except OSError as error:
        refuse_unlistable(error)
    return _check_names(folder, sorted(found))


def refuse_unlistable(error: OSError) -> NoReturn:
    """For `os.walk`, which would otherwise pass over such a folder."""
    if isinstance(error, FileNotFoundError):
        raise InputError(f"{error.filename}: no such folder")
    raise InputError(f"{error.filename}: this folder cannot be listed ({error.strerror}); check its permissions and its disk")


def _check_names(folder: Path, paths: list[Path]) -> list[Path]:
    """The same paths. Their names end up in tables, which are UTF-8; archives made under Windows or DOS have others."""
    problems = []
    for path in paths:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            shown = os.fsencode(path).decode("utf-8", "backslashreplace")
            problems.append(f"{shown}: this name is not UTF-8 (from an archive made under Windows?); rename it")
    if problems:
        raise InputProblemsError(str(folder), problems)
    return paths


def with_suffix(paths: Iterable[Path], suffixes: tuple[str, ...]) -> tuple[list[Path], list[Path]]:
    """The paths that end in one of the suffixes, whatever their capitals, and the others."""
    chosen, others = list[Path](), list[Path]()
    for path in paths:
        (chosen if path.name.lower().endswith(suffixes) else others).append(path)
    return chosen, others


def print_passed_over(paths: Iterable[Path], folder: Path, wanted: str) -> None:
    """Print how many files below a folder are not used, by suffix, and what would be (`wanted`); nothing if there are none."""
    paths = list(paths)
    if not paths:
        return
    counts = Counter("".join(path.suffixes[-2:]).lower() or "without suffix" for path in paths)
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common(4))
    print(f"note: passed over in {folder}: {kinds} (such as {paths[0].name}); expected {wanted}")
