"""Near-duplicate pictures: pairs whose 64-bit perceptual hashes differ in few bits."""

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Hashes = NDArray[np.bool_]  # [N, 64]
BLOCK = 1024  # rows compared at once; 1024 x N distances are in memory


def perceptual_hash(picture: Image.Image) -> NDArray[np.bool_]:
    """The 64-bit perceptual hash of a picture (Zauner 2010): signs of low frequencies, robust to scaling, recompression and mild
    changes of contrast."""
    return imagehash.phash(picture).hash.ravel()


def near_pairs(hashes: Hashes, max_distance: int) -> NDArray[np.int64]:
    """Pairs of rows `[P, 2]`, first < second, whose hashes differ in at most `max_distance` bits."""
    signs = hashes.astype(np.float32) * 2 - 1
    pairs = []
    for start in range(0, len(signs), BLOCK):
        distance = (signs.shape[1] - signs[start : start + BLOCK] @ signs.T) / 2
        first, second = np.nonzero(distance <= max_distance)
        pairs.append(np.stack([first + start, second], axis=1)[second > first + start])
    return np.concatenate(pairs) if pairs else np.empty((0, 2), np.int64)


def near_groups(hashes: Hashes, max_distance: int) -> NDArray[np.int32]:
    """One group label per row: connected components of the graph of `near_pairs`."""
    first, second = near_pairs(hashes, max_distance).T
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(len(hashes),) * 2)
    return connected_components(graph, directed=False)[1]
