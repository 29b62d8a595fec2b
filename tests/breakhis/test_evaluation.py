import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import balanced_accuracy_score

from quintet.breakhis.evaluation.metrics import (
    Predicted,
    choose_threshold,
    classification,
    fit_temperature,
    mean_prediction,
    subsets,
)
from quintet.breakhis.evaluation.scores import score_images, score_patients, summary
from quintet.calibration import reliability

LABELS = np.array([0, 0, 1, 1, 1])
P = np.array([0.1, 0.6, 0.4, 0.8, 0.9])


def test_fifteen_subsets():
    names = subsets(["40X", "100X", "200X", "400X"])
    assert len(names) == len(set(names)) == 15
    assert names[0] == "40X"
    assert names[-1] == "40X+100X+200X+400X"


def test_scores_against_hand_values():
    scores = classification(LABELS, P, 0.5)
    assert scores["accuracy"] == pytest.approx(3 / 5)
    assert scores["balanced_accuracy"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert scores["sensitivity"] == pytest.approx(2 / 3)
    assert scores["specificity"] == pytest.approx(1 / 2)
    assert scores["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert scores["auc"] == pytest.approx(5 / 6)
    assert scores["brier"] == pytest.approx((0.01 + 0.36 + 0.36 + 0.04 + 0.01) / 5)
    assert scores["log_loss"] == pytest.approx(-np.log([0.9, 0.4, 0.4, 0.8, 0.9]).mean())
    # every patient alone in its bin
    assert scores["ece"] == pytest.approx(np.abs(P - LABELS).mean())


def test_a_single_class_leaves_out_what_needs_two():
    scores = classification(np.ones(3, int), np.array([0.2, 0.7, 0.9]), 0.5)
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert not {"auc", "sensitivity", "balanced_accuracy"} & set(scores)


def test_reliability_bins():
    curve = reliability(np.array([0, 1, 1]), np.array([0.05, 0.07, 1.0]))
    assert curve["count"].tolist() == [2, 1]
    assert curve["predicted"].tolist() == pytest.approx([0.06, 1.0])
    assert curve["observed"].tolist() == [0.5, 1.0]


def test_threshold_is_the_best_one_nearest_to_a_half():
    assert choose_threshold(LABELS, np.array([0.1, 0.2, 0.6, 0.8, 0.9])) == 0.5
    found = choose_threshold(LABELS, np.array([0.5, 0.6, 0.7, 0.8, 0.9]))
    assert found == pytest.approx(0.65)
    assert balanced_accuracy_score(LABELS, np.array([0.5, 0.6, 0.7, 0.8, 0.9]) >= found) == 1


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_temperature_scaling_finds_the_temperature_that_was_applied(true):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 4000)
    labels = (rng.uniform(size=4000) < expit(logits)).astype(int)
    found = fit_temperature(labels, lambda t: expit(logits * true / t))
    assert found == pytest.approx(true, rel=0.1)


def test_validation_patients_without_an_error_do_not_make_a_prediction_certain():
    labels, logits = np.repeat([0, 1], 10), np.repeat([-1.0, 1.0], 10)
    assert expit(1.0 / fit_temperature(labels, lambda t: expit(logits / t))) == pytest.approx(11 / 12, abs=1e-3)


def predicted(probability, images):
    names = ["a", "b", "c"]
    return Predicted(names, ["40X", "100X"], probability, np.eye(3, 8), pd.DataFrame(images))


IMAGES = {
    "patient": list("aaaabbc"),
    "magnification": ["40X"] * 6 + ["100X"],
    "row": range(7),
    "probability": [0.1, 0.2, 0.3, 0.9, 0.8, 0.1, 0.9],
}


def test_patient_recognition_rate_is_the_mean_of_patients_shares():
    """a (benign): 3 of 4 right; b (malignant): 1 of 2; c has no image at 40X."""
    own = predicted(
        {"40X": np.array([0.3, 0.6, np.nan]), "100X": np.array([np.nan, np.nan, 0.9]), "40X+100X": np.array([0.3, 0.6, 0.9])},
        IMAGES,
    )
    labels, types = np.array([0, 1, 1]), np.eye(3, 8)
    images = score_images(own, labels, 0.5)
    table = score_patients(own, labels, types, images, 0.5)
    metrics = summary(table, images, 0.5)
    assert metrics["patient_recognition_rate/40X"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert metrics["image_accuracy/40X"] == pytest.approx(4 / 6)
    assert metrics["patient_recognition_rate/100X"] == 1
    assert metrics["balanced_accuracy/40X"] == 1  # of the two patients that have it
    assert table["correct/40X"].isna().tolist() == [False, False, True]
    assert metrics["type_accuracy"] == 1


def test_mean_of_models():
    one = predicted({"40X+100X": np.array([0.2, 0.4, 0.6])}, IMAGES)
    other = predicted({"40X+100X": np.array([0.4, 0.8, 0.6])}, IMAGES)
    np.testing.assert_allclose(mean_prediction([one, other]).malignant, [0.3, 0.6, 0.6])


def test_a_subset_that_one_class_alone_has_gets_no_balanced_accuracy():
    own = predicted({"40X": np.array([0.3, np.nan, np.nan]), "40X+100X": np.array([0.3, 0.6, 0.9])}, IMAGES)
    labels = np.array([0, 1, 1])
    images = score_images(own, labels, 0.5)
    metrics = summary(score_patients(own, labels, np.eye(3, 8), images, 0.5), images, 0.5)
    assert "balanced_accuracy/40X" not in metrics
    assert metrics["balanced_accuracy/40X+100X"] == 1
