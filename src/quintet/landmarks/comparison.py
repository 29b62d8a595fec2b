"""All configurations and baselines side by side: the ranking, and what else this study wants to see of each."""

from pathlib import Path

import numpy as np
import pandas as pd

from quintet import ranking, results
from quintet.comparison import evaluation_metrics, prune_runs, publish, select_columns, training_metrics
from quintet.landmarks.anatomy import NAMES
from quintet.landmarks.baselines import BASELINES
from quintet.landmarks.figures import success_rate
from quintet.pages import Section
from quintet.params import Landmarks, Params, predecessor

METRIC = "error_px"
UNIT = "px at 224"
SWEEP, FITTED = Path("runs/landmarks/sweep"), Path("runs/landmarks/baselines")
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
    "distance_error_px": "distances",
    "left_right_confused": "left-right confused",
    "calibration_error_px": "calibration error",
    "risk_at_80_percent_coverage_px": "error of the surest 80 %",
}
COSTS = {
    "train_seconds": "training, s",
    "parameters": "parameters",
    "peak_memory_mb": "peak memory, MiB",
    "best_epoch": "best epoch",
}

READING = """A patient here is a group of near-duplicate images, most often one image: the data names no persons.

The published errors were reached with ImageNet weights on a GPU, on 144 other test images
(github.com/Rhaink/landmark_prediction);
they stand beside ours for orientation, not as a comparison on equal terms."""


def runs_of(p: Landmarks, sweep: Path, baselines: Path) -> dict[str, list[Path]]:
    """The run folders that params name."""
    runs = {name: [sweep / name / f"seed{seed}" for seed in p.sweep.seeds] for name in p.configs}
    return runs | {name: [baselines / name / "seed0"] for name in BASELINES}


def ranked(params: Params, sweep: Path = SWEEP, baselines: Path = FITTED) -> ranking.Ranking:
    runs = runs_of(params.landmarks, sweep, baselines)
    table = results.read([run / "evaluation" / "cases.csv" for group in runs.values() for run in group])
    return ranking.rank(
        table,
        METRIC,
        lower_is_better=True,
        alpha=params.ranking.alpha,
        bootstrap=params.ranking.bootstrap,
        published=params.landmarks.published,
        deterministic=list(BASELINES),
    )


def compare(params: Params, sweep: Path, baselines: Path, out: Path, report: Path) -> str:
    """Rank what params names, write `report` and `out` = {record.json}; returns the verdict."""
    p = params.landmarks
    runs = runs_of(p, sweep, baselines)
    prune_runs(sweep, [run for name in p.configs for run in runs[name]])
    table = ranked(params, sweep, baselines)
    order = list(table.table["config"])

    def sections(folder: Path) -> list[Section]:
        success_rate(folder / "sdr.png", {name: _image_errors(runs[name]) for name in order})
        return [
            _phases(table.pairs, {name: predecessor(config) for name, config in p.configs.items()}),
            *_sections(runs, order),
            Section("How to read this", READING),
            Section("Success detection rate", figures=[folder / "sdr.png"]),
        ]

    publish("landmarks", table, runs, out, report, title="Chest X-ray landmarks", unit=UNIT, extra=sections)
    return table.verdict


def _image_errors(runs: list[Path]) -> np.ndarray:
    table = results.read(run / "evaluation" / "cases.csv" for run in runs)
    return table[table["metric"] == METRIC].groupby("case")["value"].mean().to_numpy()


def _sections(runs: dict[str, list[Path]], order: list[str]) -> list[Section]:
    """Tables of details, per category, per landmark and cost; a configuration's figure is the mean over its runs."""
    found, costs = evaluation_metrics(runs, order), training_metrics(runs, order)
    categories = {c: c.removeprefix("error_px_").replace("_", " ") for c in found if c.startswith("error_px_") and c[9].isupper()}
    places = {c: f"{k} {NAMES[k]}" for k in range(len(NAMES)) for c in found if c.startswith(f"error_px_{k:02d}_")}
    return [
        Section(
            "Details",
            f"Errors in {UNIT} unless said otherwise; shares of images between 0 and 1.",
            select_columns(found, DETAILS),
        ),
        Section("By diagnosis", f"Mean error, {UNIT}.", select_columns(found, categories)),
        Section("By landmark", f"Mean error, {UNIT}.", select_columns(found, places)),
        Section("Cost", "Training time includes validation; on this machine.", select_columns(costs, COSTS)),
    ]


def _phases(pairs: pd.DataFrame, before: dict[str, str | None]) -> Section:
    """Each phase against the one it continues, paired per image; differences as the ranking's decision rule sees them."""
    rows = []
    for config, earlier in before.items():
        if earlier is None:
            continue
        for pair in pairs[pairs["first"].isin([config, earlier]) & pairs["second"].isin([config, earlier])].itertuples():
            sign = 1 if pair.first == config else -1
            verdict = "yes" if pair.separated else "no"
            rows.append((f"{config} - {earlier}", sign * float(pair.difference), float(pair.se), f"{pair.p_holm:.2g}", verdict))
    text = (
        f"Difference of the mean error in {UNIT} (negative: better), paired by image; p after Holm over all pairs of the ranking."
    )
    columns = ["phase - the phase before", "difference", "standard error", "p (Holm)", "separated"]
    return Section("Phase against phase", text, pd.DataFrame(rows, columns=columns))
