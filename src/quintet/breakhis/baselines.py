"""What the networks are compared with: two trivial methods, and what the drawn truth of phantoms allows. Imports no torch."""

from functools import partial
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from quintet.breakhis.data.classes import MAGNIFICATIONS
from quintet.breakhis.data.prepared import Prepared
from quintet.breakhis.evaluation.figures import plot_diagnostics
from quintet.breakhis.evaluation.metrics import Floats, choose_threshold, classification
from quintet.breakhis.evaluation.scores import score_decisions, write_cases
from quintet.registry import Registry
from quintet.runs import Record
from quintet.study import Baseline, Metrics

BASELINES = Registry("baseline")  # (data, training patients, patients) -> probabilities of malignant [P]


@BASELINES.register("prior")
def prior(data: Prepared, train: list[str], patients: list[str]) -> Floats:
    """The share of malignant training patients, for everybody."""
    return np.full(len(patients), data.classes(train).mean())


@BASELINES.register("stain")
def stain(data: Prepared, train: list[str], patients: list[str]) -> Floats:
    """Logistic regression on the mean colour of a patient's images: what the stain alone predicts."""
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(mean_colours(data, train), data.classes(train))
    return np.asarray(model.predict_proba(mean_colours(data, patients))[:, 1])


@BASELINES.register("oracle")
def oracle(data: Prepared, train: list[str], patients: list[str]) -> Floats:
    """The probability that a phantom's drawn traits give (synthetic.py): no method can do better on average."""
    assert data.truth is not None
    return data.truth.set_index("patient").loc[patients, "probability"].to_numpy()


def mean_colours(data: Prepared, patients: list[str]) -> Floats:
    """The mean red, green and blue of each patient's images, `[P, 3]`."""
    means = [
        np.mean([data.images[m][row].mean((0, 1)) for m, rows in zip(MAGNIFICATIONS, own, strict=True) for row in rows], axis=0)
        for own in data.image_rows(patients, MAGNIFICATIONS).rows
    ]
    return np.stack(means)


def baselines(data: Prepared) -> dict[str, Baseline]:
    """The oracle only for phantoms."""
    names = [name for name in BASELINES if name != "oracle" or data.truth is not None]
    return {name: Baseline({}, {}, partial(_evaluate, name, data)) for name in names}


def _evaluate(name: str, data: Prepared, out: Path, record: Record) -> Metrics:
    """Fit a baseline on a fold's training patients, set its threshold on the validation patients, and score the test patients."""
    train, valid, test = (data.patients(part, record.fold) for part in ("train", "valid", "test"))
    predict = partial(BASELINES[name], data, train)
    threshold = choose_threshold(data.classes(valid), predict(valid))
    labels, p = data.classes(test), predict(test)
    write_cases(score_decisions(test, labels, p, threshold), record, out)
    (out / "figures").mkdir()
    plot_diagnostics(out / "figures" / "diagnostics.png", [(labels, p)], p >= threshold, title=record.name)
    return classification(labels, p, threshold) | {"threshold": threshold, "patients": float(len(test))}
