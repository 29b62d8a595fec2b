"""Near-duplicate pictures: perceptual hashes that differ in few of their 64 bits."""

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Hashes = NDArray[np.bool_]  # [N, 64]
BLOCK = 1024  # rows compared at once: 1024 x N distances in memory


def perceptual_hash(picture: Image.Image) -> NDArray[np.bool_]:
    """64 bits (Zauner 2010): signs of low frequencies, the same after scaling, recompression and mild changes of contrast."""
    return imagehash.phash(picture).hash.ravel()


def near_pairs(hashes: Hashes, largest_distance: int) -> NDArray[np.int64]:
    """Pairs `[P, 2]` of rows, first < second, whose hashes differ in at most so many bits."""
    signs = hashes.astype(np.float32) * 2 - 1
    found = []
    for start in range(0, len(signs), BLOCK):
        distance = (signs.shape[1] - signs[start : start + BLOCK] @ signs.T) / 2
        one, other = np.nonzero(distance <= largest_distance)
        found.append(np.stack([one + start, other], axis=1)[other > one + start])
    return np.concatenate(found) if found else np.empty((0, 2), np.int64)


def near_groups(hashes: Hashes, largest_distance: int) -> NDArray[np.int32]:
    """Group label per row: what `near_pairs` joins, transitively."""
    one, other = near_pairs(hashes, largest_distance).T
    joined = coo_array((np.ones(len(one)), (one, other)), shape=(len(hashes),) * 2)
    return connected_components(joined, directed=False)[1]
