"""Large arrays in memory-mapped .npy files, filled row by row."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike


def new_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap:
    """Create a memory-mapped .npy file of zeros.

    Its disk space is reserved first, which raises OSError on a full disk; writing to a mapped file on a full disk would kill the
    process with SIGBUS instead.
    """
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
