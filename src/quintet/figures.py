"""Plots shared by the studies; drawn without a display and without pyplot's global state."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from quintet.files import atomic_file


def new_figure(width_in: float, height_in: float, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """A figure and its axes: one, or an array of rows x columns."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns)
    return figure, axes


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG, whole; without the metadata that would make equal figures differ."""
    with atomic_file(path) as beside:
        figure.savefig(beside, dpi=110, metadata={"Software": None})


def plot_learning_curves(
    path: Path, history: pd.DataFrame, *, title: str, loss_unit: str, score: str, score_label: str, lower_is_better: bool = True
) -> None:
    """Training and validation loss beside the validation score, per epoch, with the best epoch marked."""
    figure, (left, right) = new_figure(10, 4, 1, 2)
    epochs = history["epoch"] + 1
    for column, label in (("train_loss", "training (augmented)"), ("valid_loss", "validation")):
        left.plot(epochs, history[column], label=label)
    left.set(title="Loss", xlabel="epoch", ylabel=loss_unit)
    left.legend(fontsize=8)
    right.plot(epochs, history[score], color="#d73027")
    best = history[score].idxmin() if lower_is_better else history[score].idxmax()
    right.plot(
        epochs[best],
        history[score][best],
        "o",
        color="#1a9850",
        label=f"best: {history[score][best]:.3g} in epoch {epochs[best]}",
    )
    right.set(title="Validation", xlabel="epoch", ylabel=score_label)
    right.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)
