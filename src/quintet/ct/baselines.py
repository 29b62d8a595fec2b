"""What an embedding must beat, as similarities of the test scans. No torch."""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from quintet.ct.data import Prepared
from quintet.ct.metrics import jaccard
from quintet.registry import Registry

BASELINES = Registry("baseline")
BINS = 32
Similarity = NDArray[np.float32]  # [N, N] of N test scans


@BASELINES.register
def random(data: Prepared, rows: NDArray[np.int64]) -> Similarity:
    """Every scan is as similar as any other: the metrics, exact under ties, are those of a random order on average."""
    return np.zeros((len(rows), len(rows)), np.float32)


@BASELINES.register
def prior(data: Prepared, rows: NDArray[np.int64]) -> Similarity:
    """The same answer to everybody: first the scans whose findings are relevant to most of the training scans. It reads the
    labels
    of the scans it ranks and never looks at the query: the best that can be done without looking."""
    relevant = jaccard(data.labels[rows], data.labels[data.rows("train")]) > 0
    return np.broadcast_to(relevant.mean(1).astype(np.float32), (len(rows), len(rows)))


@BASELINES.register
def histogram(data: Prepared, rows: NDArray[np.int64]) -> Similarity:
    """Scans with similar shares of intensities (1-norm of histograms over the window; voxels at its lower end left out)."""
    shares = []
    for row in rows:
        counts = np.bincount(data.volumes[row].ravel(), minlength=256)[1:]
        bins = np.add.reduceat(counts, np.arange(0, 255, 256 // BINS))
        shares.append(bins / max(1, bins.sum()))
    return -cdist(shares, shares, "cityblock").astype(np.float32)
