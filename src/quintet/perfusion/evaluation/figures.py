"""Figures of the perfusion study: territories on the flow maps, and learning curves."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet.figures import new_figure, plot_learning_curves, save_figure
from quintet.imaging.volumes import Grid
from quintet.perfusion.data.prepared import SIDES

TRUE, PREDICTED = "#1a9850", "#d73027"


@dataclass(frozen=True)
class Slice:
    """One slice of a case, canonical axes `[2, rows, columns]` (left, right)."""

    level: int
    flow: NDArray[np.float32]
    true: NDArray[np.bool_] | None
    predicted: NDArray[np.bool_]
    aspect: float  # height of a pixel over its width


def fullest_slice(grid: Grid, flow: NDArray[np.float32], true: NDArray[np.bool_] | None, predicted: NDArray[np.bool_]) -> Slice:
    """The slice with the largest territories (annotated ones if given). Arrays `[2, X, Y, Z]` on the file's axes."""
    turned = [
        None if a is None else np.stack([grid.to_canonical(side) for side in a[:2]], axis=1) for a in (flow, true, predicted)
    ]
    flow_, true_, predicted_ = turned  # [Z, 2, Y, X]
    area = true_ if true_ is not None else predicted_
    level = int(area.sum((1, 2, 3)).argmax())  # type: ignore[union-attr]
    _, y_mm, x_mm = grid.spacing_mm
    return Slice(level, flow_[level], None if true_ is None else true_[level], predicted_[level], y_mm / x_mm)  # type: ignore[index]


def plot_all(folder: Path, slices: dict[str, Slice], table: pd.DataFrame, *, title: str, history: pd.DataFrame | None) -> None:
    """Write overlays.png (best, median, worst case by Dice; one panel per hemisphere) and learning_curves.png."""
    order = table["dice"].to_numpy().argsort(kind="stable")[::-1]
    chosen = dict(zip(("best", "median", "worst"), order[[0, len(order) // 2, -1]], strict=True))
    figure, axes = new_figure(7.5, 4.2 * len(chosen), len(chosen), 2)
    for (label, row), pair in zip(chosen.items(), axes, strict=True):
        name, scores = table["case"][row], table.iloc[row]
        captions = [
            f"{label}: {name}, slice {slices[name].level}\n{side} ICA, Dice {scores[f'dice_{side}']:.3f} (3D)" for side in SIDES
        ]
        _plot_territories(pair, slices[name], captions)
    figure.suptitle(f"{title}\ngreen: annotated, red: predicted; the patient's left is on the left", fontsize=10)
    save_figure(figure, folder / "overlays.png")
    if history is not None:
        plot_learning_curves(
            folder / "learning_curves.png",
            history,
            title=title,
            loss_unit="loss",
            score="valid_dice",
            score_label="Dice over all held-out pixels",
            lower_is_better=False,
        )


def overlay(path: Path, shown: Slice, title: str) -> None:
    """One case, one panel per hemisphere."""
    figure, axes = new_figure(7.5, 4.5, 1, 2)
    _plot_territories(axes, shown, [f"{side} ICA, slice {shown.level}" for side in SIDES])
    text = f"{title}\nred: predicted; the patient's left is on the left"
    figure.suptitle(text, fontsize=10, parse_math=False)
    save_figure(figure, path)


def panels(path: Path, slices: dict[str, Slice], title: str) -> None:
    """Two panels (left, right) per case, three cases per row."""
    rows = -(-len(slices) // 3)
    figure, axes = new_figure(15, 3.6 * rows, rows, 6)
    pairs = np.atleast_2d(axes).reshape(-1, 2)
    for pair, (name, shown) in zip(pairs, slices.items(), strict=False):
        _plot_territories(pair, shown, [f"{name}, {side}" for side in SIDES])
    for pair in pairs[len(slices) :]:
        for axis in pair:
            axis.set_axis_off()
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def _plot_territories(axes: Any, shown: Slice, captions: list[str]) -> None:
    for side, axis in enumerate(axes):
        flow = shown.flow[side]
        axis.imshow(
            flow, cmap="gray", origin="lower", vmin=np.quantile(flow, 0.02), vmax=np.quantile(flow, 0.99), aspect=shown.aspect
        )
        for masks, colour in ((shown.true, TRUE), (shown.predicted, PREDICTED)):
            if masks is not None and 0 < masks[side].sum() < masks[side].size and min(masks[side].shape) > 1:
                axis.contour(masks[side], levels=[0.5], colors=colour, linewidths=1.2)
        axis.set_title(captions[side], fontsize=9, parse_math=False)
        axis.set_axis_off()
