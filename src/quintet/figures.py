"""Plots shared by the studies, drawn without a display and without pyplot's global state."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from quintet.files import atomic_file


def new_figure(width_in: float, height_in: float, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """Create a figure and its axes: a single one, or an array shaped as in `Figure.subplots`."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns)
    return figure, axes


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG atomically, without the metadata that would make equal figures differ."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})


def plot_learning_curves(
    path: Path, history: pd.DataFrame, *, title: str, loss_unit: str, score: str, score_label: str, lower_is_better: bool = True
) -> None:
    """Plot training and validation loss, and beside them the validation score with its best epoch marked.

    `history` has one row per epoch: epoch (from 0), train_loss, valid_loss and the column `score`.
    """
    figure, (left, right) = new_figure(10, 4, 1, 2)
    epochs = history["epoch"] + 1
    for column, label in (("train_loss", "training (augmented)"), ("valid_loss", "validation")):
        left.plot(epochs, history[column], label=label)
    left.set(title="Loss", xlabel="epoch", ylabel=loss_unit)
    left.legend(fontsize=8)
    right.plot(epochs, history[score], color="#d73027")
    best = history[score].idxmin() if lower_is_better else history[score].idxmax()
    best_label = f"best: {history[score][best]:.3g} in epoch {epochs[best]}"
    right.plot(epochs[best], history[score][best], "o", color="#1a9850", label=best_label)
    right.set(title="Validation", xlabel="epoch", ylabel=score_label)
    right.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)
