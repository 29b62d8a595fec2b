"""Floor and ceiling of the ranking: a threshold on the flow maps, and the territories behind synthetic labels.

It does not import torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from quintet.params.perfusion import PerfusionBaselines
from quintet.perfusion.data.geometry import on_file_grid
from quintet.perfusion.data.prepared import Prepared, centred
from quintet.perfusion.evaluation.scores import Predicted, evaluate
from quintet.registry import Registry
from quintet.runs import Record
from quintet.study import Baseline, Metrics

BASELINES = Registry("baseline")
Floats = NDArray[np.float32]
Predictor = Callable[[int], NDArray[np.bool_]]  # from a row of the prepared table to its masks on the file's grid, [2, X, Y, Z]


@dataclass(frozen=True)
class Threshold:
    """A territory: where an artery has at least `share` of the smoothed flow, and the flow is above `flow` times its median."""

    sigma_px: float
    share: float
    flow: float

    def __call__(self, maps: Floats) -> NDArray[np.bool_]:
        """Flow maps `[slices, 2, rows, columns]` -> masks of the same shape."""
        share, level = smoothed(maps, self.sigma_px)
        return (share >= self.share) & (level > self.flow)[:, None]


def smoothed(maps: Floats, sigma_px: float) -> tuple[Floats, Floats]:
    """Of flow maps `[slices, 2, rows, columns]`, smoothed within slices: each artery's share, and the flow of both together in
    units of its median `[slices, rows, columns]`. Outside the brain both are 0."""
    brain = (maps != 0).any(1)
    flow = gaussian_filter(maps, (0, 0, sigma_px, sigma_px)).clip(0) * brain[:, None]
    total = flow.sum(1)
    return flow / total.clip(1e-6)[:, None], total / max(float(np.median(total[brain])), 1e-6)


def choose_threshold(data: Prepared, rows: list[int], params: PerfusionBaselines) -> Threshold:
    """The threshold with the best mean Dice over the cases in `rows`, from all combinations of the listed values."""
    shares, flows = (np.sort(np.array(values, np.float32)) for values in (params.share, params.flow))
    dice = np.zeros((len(params.sigma_px), len(shares), len(flows)))
    for row in rows:
        maps, masks = data.flow(row), centred(data.masks[data.slices(row)], data.geometry[row].size).astype(bool)
        for at, sigma_px in enumerate(params.sigma_px):
            share, level = smoothed(maps, sigma_px)
            # how many of the sorted limits a pixel passes, so that every combination is counted in one pass
            passed = np.searchsorted(flows, level, side="left")
            for side in range(2):
                pairs = np.searchsorted(shares, share[:, side], side="right") * (len(flows) + 1) + passed
                found, both = (_count(pairs[chosen], dice.shape[1:]) for chosen in (..., masks[:, side]))
                total = found + masks[:, side].sum()
                dice[at] += np.where(total > 0, 2 * both / total.clip(1), 1)
    best = int(dice.argmax())
    sigma_px, share, flow = list(product(params.sigma_px, shares.tolist(), flows.tolist()))[best]
    return Threshold(sigma_px, share, flow)


def _count(pairs: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """The number of pixels that pass the i-th and the j-th limit, `shape`, from the pairs of passed limits as one number each."""
    shares, flows = shape
    counts = np.bincount(pairs.ravel(), minlength=(shares + 1) * (flows + 1)).reshape(shares + 1, flows + 1)
    passed: NDArray[np.int64] = counts[::-1, ::-1].cumsum(0).cumsum(1)[::-1, ::-1][1:, 1:]
    return passed


@BASELINES.register("threshold")
def threshold(data: Prepared, params: PerfusionBaselines, fold: int) -> Predictor:
    """What flow alone tells, with constants from the fold's training cases."""
    chosen = choose_threshold(data, data.rows("train", fold), params)
    return lambda row: on_file_grid(chosen(data.flow(row)).astype(np.float32), data.geometry[row]) >= 0.5


@BASELINES.register("oracle")
def oracle(data: Prepared, params: PerfusionBaselines, fold: int) -> Predictor:
    """The true territories, which labels differ from by the annotator alone."""
    return data.oracle_masks


def baselines(data: Prepared, params: PerfusionBaselines) -> dict[str, Baseline]:
    """The baselines of a data set: only synthetic data have an oracle."""
    values = {"threshold": params.model_dump(), "oracle": {}}
    names = [name for name in BASELINES if name != "oracle" or data.oracle is not None]
    return {name: Baseline(values[name], {}, partial(_evaluate, name, data, params)) for name in names}


def _evaluate(name: str, data: Prepared, params: PerfusionBaselines, out: Path, record: Record) -> Metrics:
    """Score a baseline on the held-out cases of the record's fold."""
    predict = BASELINES[name](data, params, record.fold)

    def predicted(row: int) -> Predicted:
        case, subject = data.table.loc[row, ["case", "subject"]]
        geometry = data.geometry[row]
        flow = on_file_grid(data.flow(row), geometry)
        return Predicted(case, subject, geometry.grid, flow, predict(row).astype(np.float32), data.label_masks(row))

    return evaluate((predicted(row) for row in data.rows("val", record.fold)), record=record, out=out)
