"""Where an image lies, as far as its file still says so."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def has_lost_its_place(affine: NDArray[Any]) -> bool:
    """Whether an affine `[4, 4]` is the identity but for signs: an array that was saved without its scan's own. (NiBabel users
    write the identity, SimpleITK diag(-1, -1, 1).)"""
    return np.array_equal(np.abs(affine), np.eye(4))
