"""The ranking of configurations and baselines, and the other tables of its report."""

import re
from pathlib import Path

import numpy as np

from quintet import ranking
from quintet.comparison import Runs, evaluation_metrics, read_all_cases, read_cases, select_columns, training_metrics
from quintet.landmarks.data.anatomy import NAMES
from quintet.landmarks.evaluation.figures import success_rate
from quintet.pages import Section
from quintet.params import Landmarks, Params
from quintet.params.landmarks import BASELINES, UNIT
from quintet.ranking import Ranking, is_better

METRIC = "error_px"
CEILING = "oracle"
DETAILS = {
    "error_px_median": "median",
    "error_px_sd": "SD",
    "error_px_p95": "P95",
    "error_original_px": "mean, original px",
    "share_below_5_px": "below 5 px",
    "share_below_8.5_px": "below 8.5 px",
    "share_below_10_px": "below 10 px",
    "share_below_15_px": "below 15 px",
    "along_axis_error_px": "along axis",
    "across_axis_error_px": "across axis",
    "symmetry_error_px": "asymmetry",
    "distance_error_px": "distances between landmarks",
    "left_right_confused": "left and right confused",
    "calibration_error_px": "calibration error",
    "risk_at_80_percent_coverage_px": "error of the most certain 80 %",
}
COSTS = {
    "train_seconds": "training, s",
    "parameters": "parameters",
    "peak_memory_mb": "peak memory, MiB",
    "best_epoch": "best epoch (from 0)",
}

DETAILS_TEXT = """Errors in {unit} unless stated otherwise; fractions of images between 0 and 1. along axis, across axis: the
parts of the error parallel to the midline and at right angles to it. asymmetry: of the prediction alone, how far the points
of a pair are from being mirror images at the midline; no error, as patients are not symmetrical. distances between landmarks:
predicted minus true, absolute. left and right confused: a left landmark predicted to the right of its partner. calibration
error: between expected and observed error, over tenths of the expected one. most certain: those with the smallest expected
error."""
READING = """A patient here is a group of near-duplicate images, usually a single image, because the data do not identify people.

The published errors were obtained with ImageNet weights on a GPU, on 144 other test images
(github.com/Rhaink/landmark_prediction). They are listed for reference only; the conditions differ."""


def rank(params: Params, runs: Runs) -> Ranking:
    configs = params.landmarks.configs
    predecessors = {name: config.predecessor for name, config in configs.items() if config.predecessor}
    return ranking.rank(
        read_all_cases(runs),
        METRIC,
        lower_is_better=True,
        label="mean error",
        **params.ranking.model_dump(),
        published=params.landmarks.published,
        deterministic=[name for name in runs if name in BASELINES],
        floor="mean_shape",
        ceiling=CEILING,
        same_run_as=predecessors,
        questions=[is_better(name, config.control) for name, config in configs.items() if config.control != "none"],
    )


def report_sections(params: Landmarks, table: Ranking, runs: Runs, folder: Path) -> list[Section]:
    order = list(table.table["config"])
    success_rate(folder / "sdr.png", {name: _image_errors(runs[name]) for name in order})
    return [
        *_sections(runs, order),
        Section("How to read this", READING),
        Section(
            "Success detection rate", "The share of images whose mean error is below a threshold.", figures=[folder / "sdr.png"]
        ),
    ]


def _image_errors(runs: list[Path]) -> np.ndarray:
    table = read_cases(runs)
    return table[table["metric"] == METRIC].groupby("case")["value"].mean().to_numpy()


def _sections(runs: Runs, order: list[str]) -> list[Section]:
    """Tables of details, per category, per landmark and cost; a configuration's value is the mean over its runs."""
    metrics, costs = evaluation_metrics(runs, order), training_metrics(runs, order)
    prefix = "error_px_"
    categories = {c: c.removeprefix(prefix).replace("_", " ") for c in metrics if re.match(f"{prefix}[A-Z]", c)}
    landmarks = {c: f"{k} {name}" for k, name in enumerate(NAMES) for c in metrics if c.startswith(f"{prefix}{k:02d}_")}
    return [
        Section(
            "Details",
            DETAILS_TEXT.format(unit=UNIT),
            select_columns(metrics, DETAILS),
        ),
        Section("By diagnosis", f"Mean error, {UNIT}.", select_columns(metrics, categories)),
        Section("By landmark", f"Mean error, {UNIT}.", select_columns(metrics, landmarks)),
        Section("Cost", "On this machine; training time includes validation.", select_columns(costs, COSTS)),
    ]
