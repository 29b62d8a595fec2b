"""Pseudo-values of retrieval metrics, against leaving out each patient and retrieving again."""

import numpy as np
import pytest

from quintet.ct.evaluation.jackknife import patient_pseudo_values
from quintet.ct.metrics import Scans, cosine, retrieve

NAMES = {"ap_at_5": 5, "ndcg_at_10": 10}


def mean_over_patients(values: np.ndarray, patients: np.ndarray) -> float:
    means = [np.nanmean(own) for p in np.unique(patients) if not np.isnan(own := values[patients == p]).all()]
    return float(np.mean(means)) if means else float("nan")


@pytest.mark.parametrize("similarity", ["distinct", "tied", "equal"])
@pytest.mark.parametrize(("scans", "patients", "share"), [(40, 15, 0.3), (60, 60, 0.6), (25, 12, 0.1), (5, 2, 0.5)])
def test_leaving_out_each_patient(similarity: str, scans: int, patients: int, share: float) -> None:
    rng = np.random.default_rng(scans)
    people = np.array([f"p{k}" for k in [*range(patients), *rng.integers(0, patients, scans - patients)]])
    labels = (rng.random((scans, 3)) < share).astype(np.float32)
    scores = cosine(rng.normal(size=(scans, 4)))
    scores = {"distinct": scores, "tied": np.round(2 * scores), "equal": 0 * scores}[similarity]
    data = Scans(np.arange(scans).astype(str), people, labels, ["a", "b", "c"])
    found = retrieve(scores, data)
    for name, values in patient_pseudo_values(scores, data, found.metrics, NAMES).items():
        whole, without = mean_over_patients(found.metrics[name], people), []
        for patient in np.unique(people):
            kept = people != patient
            rest = Scans(data.names[kept], people[kept], labels[kept], data.findings)
            one = mean_over_patients(retrieve(scores[np.ix_(kept, kept)], rest).metrics[name], people[kept])
            without.append(whole if np.isnan(one) else one)
        expected = whole + (patients - 1) * (np.mean(without) - np.array(without))
        assert values == pytest.approx(expected, abs=1e-4)
        assert values.mean() == pytest.approx(whole)
