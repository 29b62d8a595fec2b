"""The baselines that an embedding must beat, as similarities between test scans; the oracle; and external embeddings."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from quintet.backbones import ResNet18
from quintet.ct.data.prepared import Prepared
from quintet.ct.evaluation.scores import evaluate, read_vectors
from quintet.ct.metrics import cosine, jaccard
from quintet.ct.model.networks import network_input
from quintet.params import Ct
from quintet.params.ct import ORACLE, CtTraining
from quintet.registry import Registry
from quintet.runs import Record
from quintet.study import Baseline

BASELINES = Registry("baseline")
BINS = 32
BATCH = 8
Rows = NDArray[np.int64]
Similarity = NDArray[np.float32]  # [N, N] of N test scans


@BASELINES.register("random")
def random_order(data: Prepared, rows: Rows, training: CtTraining) -> Similarity:
    """All scans are equally similar. The metrics treat ties exactly, so they equal the expectation over random orders."""
    return np.zeros((len(rows), len(rows)), np.float32)


@BASELINES.register("prior")
def label_prior(data: Prepared, rows: Rows, training: CtTraining) -> Similarity:
    """The same order for every query: first the scans whose findings have the highest mean Jaccard similarity to those of the
    training scans.

    It reads the labels of the gallery but not the query, so it is the best ranking that ignores the query.
    """
    gain = jaccard(data.labels[rows], data.labels[data.rows("train")]).mean(1)
    return np.broadcast_to(gain, (len(rows), len(rows)))


@BASELINES.register("histogram")
def intensity_histogram(data: Prepared, rows: Rows, training: CtTraining) -> Similarity:
    """Negative L1 distance between intensity histograms, excluding the voxels at the lower end of the window."""
    histograms = []
    for row in rows:
        counts = np.bincount(data.volumes[row].ravel(), minlength=256)[1:]
        bins = np.add.reduceat(counts, np.arange(0, 255, 256 // BINS))
        histograms.append(bins / max(1, bins.sum()))
    return -cdist(histograms, histograms, "cityblock").astype(np.float32)


@BASELINES.register("random-network")
def random_network(data: Prepared, rows: Rows, training: CtTraining) -> Similarity:
    """Cosine similarity of the untrained backbone's last features (random weights from seed 0): averaged over slices, rows and
    columns, and standardised over the training scans."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        backbone = ResNet18(training.width).eval()
        depth, height, width = training.input_size

        def mean_features(volumes: NDArray[np.uint8]) -> NDArray[np.float32]:
            groups = network_input(torch.from_numpy(volumes), (depth, height, width)).reshape(-1, 3, height, width)
            pooled = backbone(groups.contiguous(memory_format=torch.channels_last))[-1].mean((2, 3))
            return pooled.reshape(len(volumes), depth // 3, -1).mean(1).numpy()

        def features(chosen: Rows) -> NDArray[np.float32]:
            batches = (chosen[start : start + BATCH] for start in range(0, len(chosen), BATCH))
            return np.concatenate([mean_features(np.array(data.volumes[batch])) for batch in batches])

        known, own = features(data.rows("train")), features(rows)
    return cosine((own - known.mean(0)) / np.maximum(known.std(0), 1e-8)).astype(np.float32)


def oracle(truth: NDArray[np.float32], rows: Rows) -> Similarity:
    """Jaccard similarity of the findings that were drawn: the best ranking up to the errors of the labels."""
    return jaccard(truth[rows], truth[rows])


def baselines(data: Prepared, params: Ct) -> dict[str, Baseline]:
    """The baselines, the oracle where the data hold the drawn truth, and the external embeddings that `params.external` names."""
    rows, neighbours = data.rows("test"), params.evaluation.neighbours
    scans = data.scans(rows)

    def evaluate_baseline(name: str, method: Callable[[], Similarity], out: Path, record: Record) -> dict[str, float]:
        similarity = np.asarray(method())
        arbitrary = name in ("random", "prior", ORACLE)  # many ties
        return evaluate(similarity, scans, neighbours=neighbours, record=record, out=out, arbitrary_neighbours=arbitrary)

    def evaluate_vectors(vectors: NDArray[np.float32], out: Path, record: Record) -> dict[str, float]:
        return evaluate(cosine(vectors), scans, neighbours=neighbours, record=record, out=out, vectors=vectors)

    values = {"neighbours": neighbours}
    own = {"random-network": values | params.training.model_dump(include={"input_size", "width"})}
    methods = {name: partial(method, data, rows, params.training) for name, method in BASELINES.items()}
    if data.truth is not None:
        methods[ORACLE] = partial(oracle, data.truth, rows)
    found = {
        name: Baseline(own.get(name, values), {}, partial(evaluate_baseline, name, method)) for name, method in methods.items()
    }
    for name, path in params.external.items():
        vectors = read_vectors(Path(path), scans.names)  # now, so that a bad file is reported before anything is evaluated
        found[name] = Baseline(values, {"embeddings": Path(path)}, partial(evaluate_vectors, vectors))
    return found
