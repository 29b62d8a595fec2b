"""Figures of one evaluated run: overlays, error per landmark, success detection rate, learning curves, risk and coverage."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from quintet.figures import new_figure, plot_learning_curves, save_figure
from quintet.landmarks.data.anatomy import LANDMARKS, NAMES, PIXELS, Points
from quintet.landmarks.data.prepared import Prepared

TRUE, PREDICTED = "#1a9850", "#d73027"
THRESHOLDS_PX = (5.0, 8.5, 10.0, 15.0)
PER_PAGE = 24


def plot_all(
    folder: Path,
    data: Prepared,
    rows: NDArray[np.int64],
    points: Points,
    table: pd.DataFrame,
    *,
    title: str,
    every_image: bool,
    history: pd.DataFrame | None,
) -> None:
    """Write every figure of one run into `folder`; `rows` are the test images, `points` `[N, 15, 2]` their predictions."""
    error = table["error_px"].to_numpy()
    order = np.argsort(error, kind="stable")
    middle = len(order) // 2
    pages = {"overlays": np.concatenate([order[:4], order[middle - 2 : middle + 2], order[-4:]]) if len(order) >= 12 else order}
    if every_image:
        pages |= {f"overlays_{i // PER_PAGE + 1:02d}": order[i : i + PER_PAGE] for i in range(0, len(order), PER_PAGE)}
    for name, chosen in pages.items():
        labels = [f"{data.table['stem'].iloc[rows[i]]}: {error[i]:.1f} px" for i in chosen]
        heading = f"{title}: true (green) and predicted (red) landmarks, best to worst of {len(order)} test images"
        overlays(folder / f"{name}.png", data.images[rows[chosen]], points[chosen], data.points[rows[chosen]], labels, heading)
    per_landmark(folder / "error_per_landmark.png", table, title)
    success_rate(folder / "sdr.png", {title: error})
    risk_and_calibration(folder / "uncertainty.png", table, title)
    if history is not None and len(history):
        plot_learning_curves(
            folder / "learning_curves.png",
            history,
            title=title,
            loss_unit="weighted loss",
            score="valid_error_px",
            score_label=f"validation error (px at {PIXELS})",
        )


def overlay(axes: Axes, image: NDArray[np.uint8], points: Points, true: Points | None = None) -> None:
    """One image with its landmarks; a line joins each prediction to the true landmark."""
    height, width = image.shape
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, extent=(0, 1, height / width, 0))
    scale = np.array([1, height / width])
    if true is not None:
        for one, other in zip(points * scale, true * scale, strict=True):
            axes.plot(*zip(one, other, strict=True), color="#fee08b", linewidth=0.8)
        axes.plot(*(true * scale).T, "o", color=TRUE, markersize=3)
    axes.plot(*(points * scale).T, "o", color=PREDICTED, markersize=3)
    axes.set(xlim=(0, 1), ylim=(height / width, 0), xticks=[], yticks=[])


def overlays(path: Path, images: NDArray[np.uint8], points: Points, true: Points, labels: list[str], title: str) -> None:
    columns = min(4, len(images))
    row_count = -(-len(images) // columns)
    figure, axes = new_figure(columns * 2.6, row_count * 2.85 + 0.5, row_count, columns)
    axes = np.ravel(axes)
    for axis in axes:
        axis.axis("off")
    for axis, image, point, truth, label in zip(axes, images, points, true, labels, strict=False):
        overlay(axis, image, point, truth)
        axis.set_title(label, fontsize=8, parse_math=False)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def per_landmark(path: Path, table: pd.DataFrame, title: str) -> None:
    figure, axes = new_figure(10, 4.5)
    errors = table[[f"error_px_{k:02d}" for k in range(LANDMARKS)]].to_numpy()
    axes.boxplot(errors, showmeans=True, flierprops={"markersize": 2}, medianprops={"color": PREDICTED})
    axes.set_xticks(range(1, LANDMARKS + 1), [f"{k} {name}" for k, name in enumerate(NAMES)], rotation=40, ha="right", fontsize=8)
    limit = 1.3 * float(np.percentile(errors, 99))  # otherwise a single outlier would flatten all boxes
    beyond = int((errors > limit).sum())
    axes.set(
        title=f"{title}: error per landmark, {len(table)} test images (triangle: mean; {beyond} of {errors.size} not shown)",
        ylabel=f"error (px at {PIXELS})",
        ylim=(0, limit),
    )
    save_figure(figure, path)


def success_rate(path: Path, errors: dict[str, NDArray[np.float64]]) -> None:
    """Success detection rate: fraction of images whose mean error is below a threshold, one curve per configuration."""
    figure, axes = new_figure(7, 4.5)
    for name, error in errors.items():
        ordered = np.sort(error)
        axes.step(np.r_[0, ordered, 30], np.r_[0, np.arange(1, len(error) + 1) / len(error), 1] * 100, where="post", label=name)
    for limit in THRESHOLDS_PX:
        axes.axvline(limit, color="#999999", linewidth=0.7, linestyle=":")
        axes.text(limit, 1, f" {limit:g}", fontsize=7, color="#666666")
    axes.set(
        title="Success detection rate on the test images",
        xlabel=f"threshold on the mean error of an image (px at {PIXELS})",
        ylabel="images below the threshold (%)",
        xlim=(0, 30),
        ylim=(0, 100),
    )
    axes.legend(fontsize=8, loc="lower right")
    save_figure(figure, path)


def risk_and_calibration(path: Path, table: pd.DataFrame, title: str) -> None:
    expected, observed = table["expected_error_px"].to_numpy(), table["error_px"].to_numpy()
    kept = np.arange(1, len(expected) + 1)
    figure, (left, right) = new_figure(10, 4.2, 1, 2)
    for name, order in (
        ("by expected error", np.argsort(expected, kind="stable")),
        ("by true error (best possible)", np.argsort(observed)),
    ):
        left.plot(kept / len(kept) * 100, observed[order].cumsum() / kept, label=name)
    left.set(
        title="Risk and coverage",
        xlabel="images kept, most certain first (%)",
        ylabel=f"mean error of the kept images (px at {PIXELS})",
    )
    left.legend(fontsize=8)
    right.plot(expected, observed, ".", color="#4575b4", markersize=4)
    limit = max(float(observed.max()), float(expected.max()))
    right.plot([0, limit], [0, limit], color="#999999", linewidth=0.8)
    right.set(
        title="Expected and observed error",
        xlabel=f"expected error of an image (px at {PIXELS})",
        ylabel=f"observed error (px at {PIXELS})",
    )
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)
