"""The ranking by the Brier score, and the sections of its report, from run folders made by hand."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from quintet import results
from quintet.breakhis import study
from quintet.breakhis.comparison import as_balanced_accuracy, balanced_interval, questions
from quintet.breakhis.evaluation.scores import score_decisions
from quintet.breakhis.published import PUBLISHED
from quintet.resampling import bootstrap_weights
from quintet.runs import Record


def tidy(config, right, classes):
    rows = []
    for patient, value in right.items():
        for metric, v in (("correct", value), ("malignant", classes[patient])):
            rows.append(("breakhis", config, 0, 0, patient, patient, metric, float(v)))
    return pd.DataFrame(rows, columns=["study", "config", "fold", "seed", "group", "case", "metric", "value"])


def test_the_ranked_values_average_to_the_balanced_accuracy_of_the_shared_patients():
    classes = {"a": 0, "b": 0, "c": 1, "d": 1, "e": 1, "f": 1}
    table = pd.concat(
        [
            tidy("full", {"a": 1, "b": 0, "c": 1, "d": 1, "e": 0, "f": 0}, classes),
            tidy("fewer folds", {"a": 1, "b": 1, "c": 1, "d": 0, "e": 1}, classes),
        ]
    )
    own = as_balanced_accuracy(table)
    shared = own[own["group"] != "f"]
    means = shared.groupby("config")["value"].mean()
    assert means["full"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert means["fewer folds"] == pytest.approx((1 + 2 / 3) / 2)


def test_the_ranked_values_vary_as_the_balanced_accuracy_does():
    """A perfect classifier has no variance, whatever the class sizes; otherwise it is that of the two class means."""
    classes = {f"p{i:02d}": int(i >= 8) for i in range(30)}
    perfect = as_balanced_accuracy(tidy("perfect", dict.fromkeys(classes, 1), classes))
    assert perfect["value"].tolist() == [1.0] * 30
    right = {name: int(i % 3 > 0) for i, name in enumerate(classes)}
    values = as_balanced_accuracy(tidy("some", right, classes))["value"]
    by_class = [np.array([right[name] for name in classes if classes[name] == k]) for k in (0, 1)]
    expected = sum(own.var() / len(own) for own in by_class) / 4
    assert values.mean() == pytest.approx(np.mean([own.mean() for own in by_class]))
    assert values.to_numpy().var() / 30 == pytest.approx(expected)


def test_balanced_intervals_resample_whole_patients():
    """100 equal images of each of few patients are worth those few patients, not 100 times as much."""
    rng = np.random.default_rng(0)
    right = rng.integers(0, 2, 20).astype(float)
    classes, names = np.repeat([0.0, 1.0], 10), np.arange(20)
    few = balanced_interval(right, classes, bootstrap_weights(names, classes))
    again = names.repeat(100)
    many = balanced_interval(right[again], classes[again], bootstrap_weights(again, classes[again]))
    assert few == pytest.approx(many)
    spread = np.sqrt(sum(right[classes == k].var() / 10 for k in (0, 1)) / 4)
    assert few[1] - few[0] == pytest.approx(2 * 1.96 * spread, rel=0.2)


MALIGNANT = np.array([0, 0, 1, 1, 1, 1])


def write_run(run: Path, config: str, fold: int, correct: list[int]) -> Path:
    """Six patients of a fold, two of them benign; at 40X all of them are right, and each has one image at 40X."""
    names = [f"patient{fold}{i}" for i in range(6)]
    right = np.array(correct)
    p = np.where(right == MALIGNANT, 0.8, 0.2)
    values = score_decisions(names, MALIGNANT, p, 0.5).drop(columns="patient")
    values = values.assign(**{"type_correct": right, "correct/40X": np.ones(6)})
    table = results.to_tidy(values, "breakhis", config, fold=fold, seed=0, cases=names, groups=names)
    results.write(table, run / "evaluation" / "cases.csv")
    images = pd.DataFrame({"patient": names, "magnification": "40X", "malignant": MALIGNANT, "correct": right})
    images.to_csv(run / "evaluation" / "images.csv", index=False)
    metrics = {name: float(right.mean()) for name in PUBLISHED} | {"evaluation_seconds_per_image": 0.5}
    (run / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    Record("breakhis", "s", config, 0, {}, {}, metrics={"train_seconds": 7.0}).save(run)
    return run


@pytest.fixture
def runs(tmp_path) -> dict[str, list[Path]]:
    """Two folds of two configurations. `mmnet` misses a malignant patient of 8, `concat` also two of the 4 benign ones."""
    folds = {"mmnet": [[1, 1, 0, 1, 1, 1], [1] * 6], "concat": [[0, 1, 1, 1, 1, 1], [0, 1, 0, 1, 1, 1]]}
    return {
        name: [write_run(tmp_path / name / f"fold{fold}", name, fold, correct) for fold, correct in enumerate(rows)]
        for name, rows in folds.items()
    }


def test_the_report_agrees_with_the_ranking(make_params, runs, tmp_path):
    params = make_params({"ranking.bootstrap": 100})
    ranking = study.rank(params, runs)
    means = ranking.table.set_index("config")["mean"]
    assert list(means.index) == ["mmnet", "concat"]
    assert means["mmnet"] == pytest.approx((11 * 0.2**2 + 0.8**2) / 12)
    assert means["concat"] == pytest.approx((9 * 0.2**2 + 3 * 0.8**2) / 12)
    sections = {section.heading: section for section in study.report_sections(params, ranking, runs, tmp_path)}
    patients = sections["By patient"].table.set_index("config")
    assert patients["Brier score"].tolist() == pytest.approx(means.tolist())
    balanced = sections["Ranked by balanced accuracy"].table.set_index("config")["mean"]
    assert patients["balanced accuracy"].tolist() == pytest.approx(balanced.tolist())
    assert balanced.tolist() == pytest.approx([(1 + 7 / 8) / 2, (2 / 4 + 7 / 8) / 2])
    assert patients.loc["concat", ["sensitivity", "specificity"]].tolist() == pytest.approx([7 / 8, 2 / 4])
    assert "4 benign, 8 malignant" in sections["By patient"].text
    subsets = sections["Which magnifications are needed"].table.set_index("magnifications")
    assert subsets.loc["40X", "mmnet"] == "1.000 [1.000, 1.000]"
    assert subsets.loc["100X", "mmnet"] == ""  # no patient has such an image
    images = sections["Each image by itself"].table.set_index("config")
    assert images.loc["mmnet", "image accuracy"] == images.loc["mmnet", "patient recognition rate"] == pytest.approx(11 / 12)
    assert list(sections["By fold"].table["runs"]) == ["2", "2", "5"]
    assert set(sections["Cost"].table["training, s"]) == {7.0}
    assert all(figure.stat().st_size > 1000 for figure in sections["Curves, confusion, calibration"].figures)


def test_the_full_network_is_compared_with_concatenation_and_each_single_magnification(make_params):
    asked = [question.text for question in questions(make_params().breakhis)]
    assert asked == [f"Is mmnet better than {name}?" for name in ("concat", *(f"single-{m}X" for m in (40, 100, 200, 400)))]
