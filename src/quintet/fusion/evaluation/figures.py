"""Figures of an evaluated run: scores by pattern, ROC and calibration or survival, test-time training, quality and time by number
of steps; overviews of image cubes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_curve

from quintet.figures import new_figure, plot_learning_curves, save_figure
from quintet.fusion.data.preparation import Preparation
from quintet.fusion.evaluation.patterns import RECORDED
from quintet.fusion.metrics import auc_or_concordance_of

COLOURS = ("#2b6cb0", "#d97706")
GREY = "#999999"
BINS = 5  # of the calibration curve


def plot_all(
    folder: Path,
    tables: Mapping[str, pd.DataFrame],
    columns: Sequence[str],
    curves: pd.DataFrame | None,
    *,
    title: str,
    history: pd.DataFrame | None,
) -> None:
    """`tables`: predictions without and, if there are any, with test-time training; `columns`: of the predicted values."""
    score = "AUC" if len(columns) > 1 else "concordance index"
    _scores_by_pattern(folder / "patterns.png", tables, columns, score, title)
    recorded = {config: table[table["pattern"] == RECORDED].set_index("patient") for config, table in tables.items()}
    plain, *adapted = recorded.values()
    plot_recorded = _roc_and_calibration if len(columns) > 1 else _risk_against_time
    plot_recorded(folder / "everything_recorded.png", plain, columns, title)
    if adapted:
        _with_and_without_adaptation(folder / "test_time_training.png", plain, adapted[0], columns[-1], title)
    if curves is not None:
        _quality_by_steps(folder / "steps.png", curves, score, title)
    if history is not None:
        plot_learning_curves(
            folder / "learning_curves.png",
            history,
            title=title,
            loss_unit="loss",
            lower_is_better=False,
            score="valid_score",
            score_label=f"validation {score}",
        )


def _scores_by_pattern(path: Path, tables: Mapping[str, pd.DataFrame], columns: Sequence[str], score: str, title: str) -> None:
    first = next(iter(tables.values()))
    names = list(dict.fromkeys(first["pattern"]))
    figure, axis = new_figure(9, 0.32 * len(names) + 1.4)
    for number, (config, table) in enumerate(tables.items()):
        values = [auc_or_concordance_of(table[table["pattern"] == name], columns) for name in names]
        axis.plot(values, np.arange(len(names)) + 0.12 * number, "o", color=COLOURS[number], label=config)
    counts = first.groupby("pattern").size()
    axis.set_yticks(range(len(names)), [f"{name} ({counts[name]})" for name in names], fontsize=8)
    axis.invert_yaxis()
    axis.axvline(0.5, linestyle=":", color=GREY, linewidth=0.8)
    axis.set(xlabel=score, title=f"{title}: by modalities (patients)")
    axis.legend(fontsize=8)
    save_figure(figure, path)


def _risk_against_time(path: Path, table: pd.DataFrame, columns: Sequence[str], title: str) -> None:
    figure, axis = new_figure(6, 4)
    for event, marker, label in ((1, "o", "event"), (0, "x", "censored")):
        rows = table[table["event"] == event]
        axis.plot(rows[columns[0]], rows["target"], marker, label=label, color=COLOURS[event])
    axis.set(xlabel="predicted risk (log hazard)", ylabel="time (days)", title=title)
    axis.legend(fontsize=8)
    save_figure(figure, path)


def _roc_and_calibration(path: Path, table: pd.DataFrame, columns: Sequence[str], title: str) -> None:
    """ROC and calibration curve of each class, and the spread over samples against the Brier score."""
    figure, (roc, calibration, spread) = new_figure(13, 4, 1, 3)
    for k, column in enumerate(columns) if len(columns) > 2 else [(1, columns[1])]:
        truth, p = (table["target"] == k).to_numpy(), table[column].to_numpy()
        if truth.any() and not truth.all():
            roc.plot(*roc_curve(truth, p)[:2], label=column.partition("/")[2])
        observed, predicted = calibration_curve(truth, p, n_bins=BINS)
        calibration.plot(predicted, observed, "o-", label=column.partition("/")[2])
    for axis in (roc, calibration):
        axis.plot([0, 1], [0, 1], ":", color=GREY, linewidth=0.8)
        axis.legend(fontsize=8)
    roc.set(title="ROC", xlabel="false positive rate", ylabel="true positive rate")
    calibration.set(title="Calibration", xlabel="predicted probability", ylabel="observed frequency")
    spread.plot(table["spread"], table["brier"], "o", markersize=3, color=COLOURS[0])
    spread.set(title="Spread over samples and error", xlabel="SD of the probability over samples", ylabel="Brier score")
    figure.suptitle(f"{title}: all recorded modalities, {len(table)} patients", fontsize=10)
    save_figure(figure, path)


def _with_and_without_adaptation(path: Path, plain: pd.DataFrame, adapted: pd.DataFrame, column: str, title: str) -> None:
    figure, axis = new_figure(5.2, 4.6)
    for was_adapted, colour, label in ((0, GREY, "not adapted (rejected)"), (1, COLOURS[0], "adapted")):
        rows = adapted["adapted"] == was_adapted
        x, y = plain.loc[rows, column], adapted.loc[rows, column]
        axis.plot(x, y, "o", markersize=4, color=colour, label=f"{label} ({rows.sum()})")
    ends = [min(plain[column].min(), adapted[column].min()), max(plain[column].max(), adapted[column].max())]
    axis.plot(ends, ends, ":", color=GREY, linewidth=0.8)
    axis.set(xlabel=f"{column} without test-time training", ylabel=f"{column} with test-time training", title=title)
    axis.legend(fontsize=8)
    save_figure(figure, path)


def _quality_by_steps(path: Path, curves: pd.DataFrame, score: str, title: str) -> None:
    kinds = list(dict.fromkeys(curves["kind"]))
    figure, axes = new_figure(5 * len(kinds), 3.6, 1, len(kinds))
    for axis, kind in zip(np.atleast_1d(axes), kinds, strict=True):
        rows = curves[curves["kind"] == kind]
        axis.plot(rows["steps"], rows["score"], "o-", color=COLOURS[0])
        axis.set(xlabel=f"{kind} steps", ylabel=score, title=f"by {kind} steps")
        cost = axis.twinx()
        cost.plot(rows["steps"], 1000 * rows["seconds_per_patient"], "s--", color=COLOURS[1], markersize=3)
        cost.set_ylabel("ms per patient (orange)")
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def montage(path: Path, patients: Sequence[tuple[str, NDArray[np.float16], NDArray[np.bool_]]], preparation: Preparation) -> None:
    """One row per patient (name, cubes `[M, S, S, S]`, present modalities): the middle axial and coronal slice of each cube as
    the network gets it. The patient's right is on the left."""
    columns = 2 * len(preparation.cubes)
    figure, axes = new_figure(1.5 * columns, 1.65 * len(patients) + 0.3, len(patients), columns)
    for row, (name, cubes, present) in zip(np.reshape(axes, (len(patients), columns)), patients, strict=True):
        middle = cubes.shape[-1] // 2
        for k, (modality, channel) in enumerate(preparation.cubes):
            has = present[preparation.modalities.index(modality)]
            shown = f"{modality} {channel}" if preparation.channels_of(modality) > 1 else modality
            for axis, view, label in (
                (row[2 * k], cubes[k, middle, ::-1, ::-1], "axial"),
                (row[2 * k + 1], cubes[k, ::-1, middle, ::-1], "coronal"),
            ):
                axis.set(xticks=[], yticks=[])
                axis.set_title(f"{shown}, {label}" if has else f"{shown}: missing", fontsize=6)
                if has:
                    axis.imshow(view.astype(np.float32), cmap="gray", vmin=0, vmax=1)
        row[0].set_ylabel(name, fontsize=6, parse_math=False)
    save_figure(figure, path)
