"""The baselines that an embedding must beat, as similarities between test scans; and external embeddings (ct.external)."""

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from quintet.ct.data.prepared import Prepared
from quintet.ct.evaluation.scores import evaluate, read_vectors
from quintet.ct.metrics import cosine, jaccard
from quintet.params import Ct
from quintet.registry import Registry
from quintet.runs import Record
from quintet.study import Baseline

BASELINES = Registry("baseline")
BINS = 32
Similarity = NDArray[np.float32]  # [N, N] of N test scans


@BASELINES.register("random")
def random_order(data: Prepared, rows: NDArray[np.int64]) -> Similarity:
    """All scans are equally similar. The metrics treat ties exactly, so they equal the expectation over random orders."""
    return np.zeros((len(rows), len(rows)), np.float32)


@BASELINES.register("prior")
def label_prior(data: Prepared, rows: NDArray[np.int64]) -> Similarity:
    """The same order for every query: first the scans that are relevant to most training scans.

    It reads the labels of the gallery but not the query, so it is the best ranking that ignores the query.
    """
    relevant = jaccard(data.labels[rows], data.labels[data.rows("train")]) > 0
    return np.broadcast_to(relevant.mean(1).astype(np.float32), (len(rows), len(rows)))


@BASELINES.register("histogram")
def intensity_histogram(data: Prepared, rows: NDArray[np.int64]) -> Similarity:
    """Negative L1 distance between intensity histograms, excluding the voxels at the lower end of the window."""
    histograms = []
    for row in rows:
        counts = np.bincount(data.volumes[row].ravel(), minlength=256)[1:]
        bins = np.add.reduceat(counts, np.arange(0, 255, 256 // BINS))
        histograms.append(bins / max(1, bins.sum()))
    return -cdist(histograms, histograms, "cityblock").astype(np.float32)


def baselines(data: Prepared, params: Ct) -> dict[str, Baseline]:
    """The baselines, and the external embeddings that `params.external` names."""
    rows, neighbours = data.rows("test"), params.evaluation.neighbours
    scans = data.scans(rows)

    def evaluate_baseline(name: str, out: Path, record: Record) -> dict[str, float]:
        similarity = np.asarray(BASELINES[name](data, rows))
        arbitrary = name in ("random", "prior")  # many ties
        return evaluate(similarity, scans, neighbours=neighbours, record=record, out=out, arbitrary_neighbours=arbitrary)

    def evaluate_vectors(vectors: NDArray[np.float32], out: Path, record: Record) -> dict[str, float]:
        return evaluate(cosine(vectors), scans, neighbours=neighbours, record=record, out=out, vectors=vectors)

    values = {"neighbours": neighbours}
    found = {name: Baseline(values, {}, partial(evaluate_baseline, name)) for name in BASELINES}
    for name, path in params.external.items():
        vectors = read_vectors(Path(path), scans.names)  # now, so that a bad file is reported before anything is evaluated
        found[name] = Baseline(values, {"embeddings": Path(path)}, partial(evaluate_vectors, vectors))
    return found
