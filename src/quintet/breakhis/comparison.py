"""All configurations side by side: ranking by patients, intervals clustered by patient, subsets of magnifications."""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet import ranking, results
from quintet.breakhis.figures import diagnostics
from quintet.breakhis.metrics import classification, subsets
from quintet.breakhis.published import CONFIG, PUBLISHED
from quintet.breakhis.tree import MAGNIFICATIONS
from quintet.comparison import Runs, evaluation_metrics, prune_runs, publish, select_columns, sweep_runs, training_metrics
from quintet.pages import Section
from quintet.params import Params
from quintet.resampling import bootstrap_concordance, bootstrap_means, bootstrap_weights, percentile_interval

METRIC, UNIT = "balanced_accuracy", "0 to 1"
SWEEP = Path("runs/breakhis/sweep")
COSTS = {
    "train_seconds": "training, s",
    "evaluation_seconds_per_image": "prediction, s an image",
    "parameters": "parameters",
    "peak_memory_mb": "peak memory, MiB",
}
Floats = NDArray[np.float64]


def ranked(params: Params, sweep: Path = SWEEP) -> ranking.Ranking:
    table = results.read(
        run / "evaluation" / "cases.csv" for group in sweep_runs(params.breakhis.sweep, sweep).values() for run in group
    )
    return ranking.rank(
        balanced(table),
        METRIC,
        lower_is_better=False,
        alpha=params.ranking.alpha,
        bootstrap=params.ranking.bootstrap,
        published={CONFIG: PUBLISHED[METRIC][0]},
    )


def balanced(table: pd.DataFrame) -> pd.DataFrame:
    """`correct` as the metric `balanced_accuracy`: times N / (2 N_class) of the patients that all configurations have, so that
    the mean over these patients is their balanced accuracy."""
    right = table[table["metric"] == "correct"]
    everywhere = right.groupby("group")["config"].nunique() == right["config"].nunique()
    classes = table[table["metric"] == "malignant"].groupby("group")["value"].first()
    counts = classes[everywhere[everywhere].index].value_counts()
    weight = classes.map(counts.sum() / (len(counts) * counts))
    return right.assign(metric=METRIC, value=right["value"] * right["group"].map(weight).fillna(0))


def compare(params: Params, sweep: Path, out: Path, report: Path) -> str:
    """Rank what params name, write `report` and `out` = {record.json}; returns the verdict."""
    p = params.breakhis
    runs = sweep_runs(p.sweep, sweep)
    prune_runs(sweep, [run for group in runs.values() for run in group])
    table = ranked(params, sweep)
    order = list(table.table["config"])
    patients = {name: _patients(runs[name]) for name in order}
    costs = training_metrics(runs, order).join(evaluation_metrics(runs, order)[["evaluation_seconds_per_image"]])

    def sections(folder: Path) -> list[Section]:
        figures = [_figure(folder, name, patients[name]) for name in order]
        return [
            Section("By patient", _by_patient_text(patients[order[0]]), _by_patient(patients)),
            Section("By fold", BY_FOLD, _by_fold(runs, order)),
            Section("Which magnifications are needed", SUBSETS, _by_subset(patients)),
            Section("Each image by itself", ALONE, _by_magnification(runs, order)),
            Section("Curves, confusion, calibration", CURVES, figures=figures),
            Section("Cost", _probe_text(p.weights, order), select_columns(costs, COSTS)),
        ]

    publish("breakhis", table, runs, out, report, title="BreakHis", unit=UNIT, extra=sections)
    return table.verdict


def _patients(runs: list[Path]) -> pd.DataFrame:
    """One row a patient and run: fold, seed, group, and the metrics of cases.csv."""
    table = results.read(run / "evaluation" / "cases.csv" for run in runs)
    return table.pivot(index=["fold", "seed", "group"], columns="metric", values="value").reset_index()


def balanced_interval(values: Floats, classes: Floats, weights: Floats) -> tuple[float, float]:
    """95 % interval of the class-balanced mean of `values` `[rows]`."""
    return percentile_interval(
        np.mean([bootstrap_means(values[classes == k], weights[:, classes == k]) for k in np.unique(classes)], axis=0)
    )


def _by_patient_text(patients: pd.DataFrame) -> str:
    people = patients.drop_duplicates("group")["malignant"]
    each = " and ".join(f"one {name} patient {50 / (people == k).sum():.1f}" for k, name in ((0, "benign"), (1, "malignant")))
    return (
        f"Test patients of all folds pooled ({(people == 0).sum():.0f} benign, {(people == 1).sum():.0f} malignant), each at the "
        f"threshold that its fold's validation patients set. Intervals: 95 %, patients drawn again within their class. "
        f"Of the balanced accuracy {each} points. Brier and ECE: lower is better."
    )


def _by_patient(patients: dict[str, pd.DataFrame]) -> pd.DataFrame:
    rows = []
    for name, table in patients.items():
        y, p, right = (table[c].to_numpy() for c in ("malignant", "probability", "correct"))
        weights = bootstrap_weights(table["group"], table["malignant"])
        # at the folds' own thresholds: correct decides, not one threshold for all
        scores = classification(y, p, 0.5) | classification(y, np.where(right == 1, y, 1 - y), 0.5)
        scores |= {k: v for k, v in classification(y, p, 0.5).items() if k in ("auc", "brier", "ece", "average_precision")}
        low, high = balanced_interval(right, y, weights)
        auc_low, auc_high = percentile_interval(bootstrap_concordance(p, (y[:, None] == 1) & (y[None, :] == 0), weights))
        rows.append(
            {
                "config": name,
                "patients": table["group"].nunique(),
                "balanced accuracy": scores["balanced_accuracy"],
                "low": low,
                "high": high,
                "accuracy": scores["accuracy"],
                "F1": scores["f1"],
                "sensitivity": scores["sensitivity"],
                "specificity": scores["specificity"],
                "AUC": scores["auc"],
                "AUC low": auc_low,
                "AUC high": auc_high,
                "Brier": scores["brier"],
                "ECE": scores["ece"],
                "type accuracy": table["type_correct"].mean(),
            }
        )
    return pd.DataFrame(rows)


BY_FOLD = """Mean and SD over the runs (folds x seeds) of each run's own figures, as the reference reports them; its figures come
from one drawn quadruple per test patient, so that each moves with the draw, ours from all images."""


def _by_fold(runs: Runs, order: list[str]) -> pd.DataFrame:
    import json

    rows = []
    for name in order:
        own = pd.DataFrame([json.loads((run / "evaluation" / "metrics.json").read_text(encoding="utf-8")) for run in runs[name]])
        found = {metric: f"{own[metric].mean():.3f} +- {own[metric].std():.3f}" for metric in PUBLISHED}
        rows.append({"config": name, "runs": str(len(own)), **found})
    rows.append(
        {"config": f"{CONFIG}, published", "runs": "5", **{m: f"{mean:.3f} +- {sd:.3f}" for m, (mean, sd) in PUBLISHED.items()}}
    )
    return pd.DataFrame(rows).rename(columns={name: name.replace("_", " ") for name in PUBLISHED})


SUBSETS = """Balanced accuracy by patient when only some magnifications are given: the others are masked, not filled. Threshold
and network stay those of all four, trained with magnifications withheld now and then (breakhis.drop_magnification)."""


def _by_subset(patients: dict[str, pd.DataFrame]) -> pd.DataFrame:
    rows = []
    for subset in subsets(MAGNIFICATIONS):
        row: dict[str, object] = {"magnifications": subset}
        for name, table in patients.items():
            if f"correct/{subset}" in table:
                own = table[table[f"correct/{subset}"].notna()]
                if own["malignant"].nunique() < 2:  # nobody of one class has any of these
                    continue
                right, y = own[f"correct/{subset}"].to_numpy(), own["malignant"].to_numpy()
                low, high = balanced_interval(right, y, bootstrap_weights(own["group"], own["malignant"]))
                row[name] = f"{np.mean([right[y == k].mean() for k in np.unique(y)]):.3f} [{low:.3f}, {high:.3f}]"
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


ALONE = """Every image classified by itself, the other magnifications masked. Patient recognition rate: the share of a patient's
images that are right, averaged over patients (Spanhol et al. 2016). Intervals are clustered: a patient is drawn with
all its images."""


def _by_magnification(runs: Runs, order: list[str]) -> pd.DataFrame:
    rows = []
    for name in order:
        images = pd.concat([pd.read_csv(run / "evaluation" / "images.csv", dtype={"patient": str}) for run in runs[name]])
        for m in [m for m in MAGNIFICATIONS if m in set(images["magnification"])]:
            own = images[images["magnification"] == m].reset_index(drop=True)
            weights = bootstrap_weights(own["patient"], own["malignant"])
            right = own["correct"].to_numpy()
            low, high = percentile_interval(bootstrap_means(right, weights))
            people = own.groupby("patient").agg(malignant=("malignant", "first"), correct=("correct", "mean")).reset_index()
            turns = bootstrap_weights(people["patient"], people["malignant"])
            people_low, people_high = percentile_interval(bootstrap_means(people["correct"].to_numpy(), turns))
            rows.append(
                {
                    "config": name,
                    "magnification": m,
                    "images": len(own),
                    "image accuracy": right.mean(),
                    "low": low,
                    "high": high,
                    "patient recognition rate": people["correct"].mean(),
                    "its low": people_low,
                    "its high": people_high,
                }
            )
    return pd.DataFrame(rows)


CURVES = """Thin: the folds; bold: all test patients pooled, whose scores come from different networks."""


def _figure(report: Path, name: str, table: pd.DataFrame) -> Path:
    path = report / f"curves_{name}.png"
    folds = [own for _, own in table.groupby("fold")]
    labelled = [(own["malignant"].to_numpy().astype(int), own["probability"].to_numpy()) for own in folds]
    said = np.concatenate([(own["malignant"] == own["correct"]).to_numpy() for own in folds])
    diagnostics(path, labelled, said, title=name)
    return path


def _probe_text(weights: str, order: list[str]) -> str:
    text = "On this machine; training includes validation."
    if "probe" in order and weights == "none":
        return (
            f"{text} Without published weights the probe is one of random features: it says what colours and textures alone tell."
        )
    return text
