"""Large arrays in .npy files, filled row by row."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike


def new_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap:
    """A .npy file of zeros, mapped into memory. Its whole space is reserved first: writing to a mapped file on a full disk ends
    the process without a word (SIGBUS), where reserving raises OSError."""
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
