"""The ranking of the configurations by the Brier score of patients, and its report: balanced accuracy, calibration, subsets of
magnifications; intervals clustered by patient."""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet import ranking
from quintet.breakhis.data.classes import MAGNIFICATIONS, case_number
from quintet.breakhis.evaluation.figures import plot_diagnostics
from quintet.breakhis.evaluation.metrics import classification, subsets
from quintet.breakhis.published import CONFIG, PUBLISHED
from quintet.comparison import (
    Runs,
    evaluation_metrics,
    read_all_cases,
    read_cases,
    read_metrics,
    select_columns,
    training_metrics,
)
from quintet.pages import Section
from quintet.params import BreakHis, Params
from quintet.ranking import Question, Ranking, is_better
from quintet.resampling import bootstrap_concordance, bootstrap_means, bootstrap_weights, percentile_interval
from quintet.runs import Record

METRIC = "brier"
FLOOR, CEILING = "prior", "oracle"
COSTS = {
    "train_seconds": "training, s",
    "evaluation_seconds_per_image": "prediction, s per image",
    "parameters": "parameters",
    "peak_memory_mb": "peak memory, MiB",
}
Floats = NDArray[np.float64]


def rank(params: Params, runs: Runs) -> Ranking:
    """By the Brier score: a proper score, which no other probability than the believed one improves, and a mean over patients.
    Classes have no weights: these would reward probabilities for another share of malignant patients."""
    return ranking.rank(
        read_all_cases(runs),
        METRIC,
        lower_is_better=True,
        label="Brier score",
        **params.ranking.model_dump(),
        bounds=(0, 1),
        questions=questions(params.breakhis),
        deterministic=_baselines(params, runs),
        floor=FLOOR,
        ceiling=CEILING,
        note="Probabilities were calibrated by temperature scaling on the validation patients of each fold (Guo et al. 2017).",
    )


def rank_balanced_accuracy(params: Params, runs: Runs) -> Ranking:
    """The same comparison by balanced accuracy, each run at the threshold of its validation patients."""
    return ranking.rank(
        as_balanced_accuracy(read_all_cases(runs)),
        "balanced_accuracy",
        lower_is_better=False,
        **params.ranking.model_dump(),
        published={CONFIG: PUBLISHED["balanced_accuracy"][0]},
        bounds=(0, 1),
        questions=questions(params.breakhis),
        deterministic=_baselines(params, runs),
        floor=FLOOR,
        ceiling=CEILING,
    )


def _baselines(params: Params, runs: Runs) -> list[str]:
    return [name for name in runs if name not in params.breakhis.configs]


def questions(params: BreakHis) -> list[Question]:
    """Is the full network better than concatenation, and than each single magnification (so than the best of them)?"""
    rivals = [name for name, config in params.configs.items() if config.trains == "all" and not config.attention]
    return [is_better(CONFIG, name) for name in rivals]


def as_balanced_accuracy(table: pd.DataFrame) -> pd.DataFrame:
    """The metric `correct` as `balanced_accuracy`, counted over the N patients that all configurations share: the configuration's
    balanced accuracy, plus N / (2 N_class) times the difference between `correct` and the accuracy in the patient's class.

    These are infinitesimal jackknife pseudo-values (Efron 1982, doi:10.1137/1.9781611970319): their mean is the balanced
    accuracy, and their variance is that of its two class means, 0 for a perfect classifier.
    """
    correct = table[table["metric"] == "correct"]
    shared = correct.groupby("group")["config"].nunique() == correct["config"].nunique()
    classes = table[table["metric"] == "malignant"].groupby("group")["value"].first()
    counts = classes[shared[shared].index].value_counts()
    by_patient = correct[correct["group"].map(shared)].groupby(["config", "group"])["value"].mean().reset_index()
    accuracy = by_patient.groupby(["config", by_patient["group"].map(classes)])["value"].mean()  # [config, class]
    balanced = accuracy.groupby("config").mean()
    own_class = correct["group"].map(classes)
    own_accuracy = accuracy.reindex(pd.MultiIndex.from_arrays([correct["config"], own_class])).to_numpy()
    weight = own_class.map(counts.sum() / (len(counts) * counts))
    value = correct["config"].map(balanced) + ((correct["value"] - own_accuracy) * weight).fillna(0)
    return correct.assign(metric="balanced_accuracy", value=value)


def report_sections(params: Params, table: Ranking, runs: Runs, folder: Path) -> list[Section]:
    order = [*table.table["config"], *([table.ceiling] if table.ceiling else [])]
    trained = [name for name in order if name in params.breakhis.configs]
    patients = {name: _patient_scores(runs[name]) for name in order}
    costs = training_metrics(runs, trained).join(evaluation_metrics(runs, trained)[["evaluation_seconds_per_image"]])
    figures = [_plot_curves(folder, name, patients[name]) for name in trained]
    balanced = rank_balanced_accuracy(params, runs)
    return [
        Section("By patient", _by_patient_text(patients[order[0]]), _by_patient(patients)),
        Section("Ranked by balanced accuracy", _balanced_text(balanced), balanced.with_ceiling()[BALANCED_COLUMNS]),
        Section("By fold", BY_FOLD, _by_fold(runs, trained)),
        Section("Which magnifications are needed", SUBSETS, _by_subset({name: patients[name] for name in trained})),
        Section("Each image by itself", SINGLE_IMAGES, _by_magnification(runs, trained)),
        Section("Curves, confusion, calibration", CURVES, figures=figures),
        Section("Cost", _cost_text(params.breakhis.training.weights, trained), select_columns(costs, COSTS)),
    ]


BALANCED_COLUMNS = ["rank", "config", "mean", "low", "high", "group", "covered"]


def _balanced_text(balanced: Ranking) -> str:
    """A second look at the same runs: the correction for multiple comparisons does not count both tables together."""
    return (
        "The same rule with the balanced accuracy of the decisions (higher is better), for readers who need it: it depends on a "
        "threshold that few validation patients set, so it is noisier than the Brier score. Patients entered with infinitesimal "
        "jackknife pseudo-values (Efron 1982). Its tests are not corrected for the table above.\n\n"
        + "\n\n".join(balanced.answers["answer"])
    )


def _patient_scores(runs: list[Path]) -> pd.DataFrame:
    """One row per patient and run: fold, seed, case, group (biopsy), and the metrics of cases.csv."""
    return read_cases(runs).pivot(index=["fold", "seed", "case", "group"], columns="metric", values="value").reset_index()


def balanced_interval(values: Floats, classes: Floats, weights: Floats) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of the class means of `values` `[rows]`; `weights` `[draws, rows]`."""
    return percentile_interval(
        np.mean([bootstrap_means(values[classes == k], weights[:, classes == k]) for k in np.unique(classes)], axis=0)
    )


def _by_patient_text(patients: pd.DataFrame) -> str:
    malignant = patients.drop_duplicates("case")["malignant"]
    counts = {name: int((malignant == k).sum()) for k, name in ((0, "benign"), (1, "malignant"))}
    points = " and ".join(f"one {name} patient is worth {50 / count:.1f}" for name, count in counts.items())
    return (
        f"The test patients of all folds together ({counts['benign']} benign, {counts['malignant']} malignant), each at the "
        "threshold set on its fold's validation patients; AUC: over pairs of one fold and seed. Intervals: 95 %, from a "
        "bootstrap of the biopsies (slides whose numbers differ only in letters are of one) within their class. "
        f"Of the balanced accuracy, {points} points. Of Brier score, log loss and ECE (expected calibration error, bins of 0.1), "
        "lower is better. type accuracy: the share of patients whose tumour type, one of eight, is right."
    )


def _by_patient(patients: dict[str, pd.DataFrame]) -> pd.DataFrame:
    rows = []
    for name, table in patients.items():
        y, p, correct = (table[c].to_numpy() for c in ("malignant", "probability", "correct"))
        weights = bootstrap_weights(table["group"], table["malignant"])
        # decisions were made at each fold's threshold, so they are recovered from `correct`
        scores = classification(y, np.where(correct == 1, y, 1 - y), 0.5)
        scores |= {k: v for k, v in classification(y, p, 0.5).items() if k in ("brier", "log_loss", "ece")}
        low, high = balanced_interval(correct, y, weights)
        run = table.groupby(["fold", "seed"]).ngroup().to_numpy()  # other networks' probabilities are on other scales
        pairs = (y[:, None] == 1) & (y[None, :] == 0) & (run[:, None] == run[None, :])
        auc = bootstrap_concordance(p, pairs, np.ones((1, len(p))))[0]
        auc_low, auc_high = percentile_interval(bootstrap_concordance(p, pairs, weights))
        rows.append(
            {
                "config": name,
                "patients": table["case"].nunique(),
                "balanced accuracy": scores["balanced_accuracy"],
                "low": low,
                "high": high,
                "accuracy": scores["accuracy"],
                "F1": scores["f1"],
                "sensitivity": scores["sensitivity"],
                "specificity": scores["specificity"],
                "AUC": auc,
                "AUC low": auc_low,
                "AUC high": auc_high,
                "Brier score": scores["brier"],
                "log loss": scores["log_loss"],
                "ECE": scores["ece"],
                "type accuracy": table["type_correct"].mean() if "type_correct" in table else np.nan,
            }
        )
    return pd.DataFrame(rows)


BY_FOLD = """Mean and SD over the runs (folds x seeds), as the reference reports them. The reference scored one randomly drawn
quadruple per test patient, so its figures vary with the draw; ours use all images."""


def _by_fold(runs: Runs, order: list[str]) -> pd.DataFrame:
    rows = []
    for name in order:
        metrics = pd.DataFrame([read_metrics(run) for run in runs[name]])
        found = {metric: f"{metrics[metric].mean():.3f} +- {metrics[metric].std():.3f}" for metric in PUBLISHED}
        rows.append({"config": name, "runs": str(len(metrics)), **found})
    published = {metric: f"{mean:.3f} +- {sd:.3f}" for metric, (mean, sd) in PUBLISHED.items()}
    rows.append({"config": f"{CONFIG}, published", "runs": "5", **published})
    return pd.DataFrame(rows).rename(columns={name: name.replace("_", " ") for name in PUBLISHED})


SUBSETS = """Balanced accuracy by patient if only some magnifications are given; the others are masked, not filled. Network and
threshold are those for all magnifications; training masked some of them at random (breakhis.training.drop_magnification)."""


def _by_subset(patients: dict[str, pd.DataFrame]) -> pd.DataFrame:
    rows = []
    for subset in subsets(MAGNIFICATIONS):
        row: dict[str, object] = {"magnifications": subset}
        for name, table in patients.items():
            if f"correct/{subset}" in table:
                available = table[table[f"correct/{subset}"].notna()]
                if available["malignant"].nunique() < 2:  # one class has no patient with any of these
                    continue
                correct, y = available[f"correct/{subset}"].to_numpy(), available["malignant"].to_numpy()
                low, high = balanced_interval(correct, y, bootstrap_weights(available["group"], available["malignant"]))
                row[name] = f"{np.mean([correct[y == k].mean() for k in np.unique(y)]):.3f} [{low:.3f}, {high:.3f}]"
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


SINGLE_IMAGES = """Every image is classified by itself, with the other magnifications masked. Patient recognition rate: the share
of a patient's images that are classified correctly, averaged over patients (Spanhol et al. 2016). The intervals are clustered:
the bootstrap draws biopsies with all their images."""


def _by_magnification(runs: Runs, order: list[str]) -> pd.DataFrame:
    rows = []
    for name in order:
        images = pd.concat(
            [
                pd.read_csv(run / "evaluation" / "images.csv", dtype={"patient": str}).assign(seed=Record.load(run).seed)
                for run in runs[name]
            ]
        )
        for m in [m for m in MAGNIFICATIONS if m in set(images["magnification"])]:
            own = images[images["magnification"] == m].reset_index(drop=True)
            correct = own["correct"].to_numpy()
            low, high = _clustered_interval(own)
            people = own.groupby("patient").agg(malignant=("malignant", "first"), correct=("correct", "mean")).reset_index()
            rate_low, rate_high = _clustered_interval(people)
            rows.append(
                {
                    "config": name,
                    "magnification": m,
                    "images": len(own) // own["seed"].nunique(),
                    "image accuracy": correct.mean(),
                    "low": low,
                    "high": high,
                    "patient recognition rate": people["correct"].mean(),
                    "rate low": rate_low,
                    "rate high": rate_high,
                }
            )
    return pd.DataFrame(rows)


def _clustered_interval(table: pd.DataFrame) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of `correct`; biopsies are drawn within their class."""
    weights = bootstrap_weights(table["patient"].map(case_number), table["malignant"])
    return percentile_interval(bootstrap_means(table["correct"].to_numpy(), weights))


CURVES = """Thin: each network (fold and seed); bold: all test patients together, although their
scores come from different networks."""


def _plot_curves(folder: Path, name: str, table: pd.DataFrame) -> Path:
    path = folder / f"curves_{name}.png"
    keys, networks = zip(*table.groupby(["fold", "seed"]), strict=True)
    labels_and_scores = [(rows["malignant"].to_numpy().astype(int), rows["probability"].to_numpy()) for rows in networks]
    malignant = np.concatenate([(rows["malignant"] == rows["correct"]).to_numpy() for rows in networks])
    plot_diagnostics(path, labels_and_scores, malignant, title=name, names=[f"fold {fold}, seed {seed}" for fold, seed in keys])
    return path


def _cost_text(weights: str, order: list[str]) -> str:
    text = "On this machine; training time includes validation."
    if "probe" in order and weights == "none":
        text += " Without pretrained weights the probe has random features: it shows what colours and textures alone predict."
    return text
