"""The baselines: the mean shape (the floor), ridge regression on a small image, which a network must beat, and for phantoms an
oracle (the ceiling). Imports no torch."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import Ridge

from quintet.landmarks.data.anatomy import LANDMARKS, Points
from quintet.landmarks.data.prepared import Prepared
from quintet.landmarks.evaluation.scores import UNCERTAINTY_FEATURES, Calibration, Predicted, evaluate, pixel_errors
from quintet.params.landmarks import LandmarksBaselines
from quintet.registry import Registry
from quintet.runs import Record
from quintet.study import Baseline, Metrics

BASELINES = Registry("baseline")
Predictor = Callable[[NDArray[np.int64]], Points]  # from rows of the prepared table to their points


@BASELINES.register("mean_shape")
def mean_shape(data: Prepared, params: LandmarksBaselines) -> Predictor:
    """Every landmark at its mean position over the training images."""
    mean = data.points[data.rows("train")].mean(0)
    return lambda rows: np.repeat(mean[None], len(rows), axis=0)


@BASELINES.register("ridge")
def ridge(data: Prepared, params: LandmarksBaselines) -> Predictor:
    """Ridge regression on the pixels of a small image; the penalty is chosen on the validation part."""
    small = np.stack([np.asarray(Image.fromarray(i).resize((params.ridge_size,) * 2, Image.Resampling.BOX)) for i in data.images])
    pixels = small.reshape(len(small), -1) / np.float32(255)
    train, valid = data.rows("train"), data.rows("valid")
    models = [Ridge(alpha=alpha).fit(pixels[train], data.points[train].reshape(len(train), -1)) for alpha in params.ridge_alphas]

    def points(model: Ridge, rows: NDArray[np.int64]) -> Points:
        return np.asarray(model.predict(pixels[rows])).reshape(-1, LANDMARKS, 2)

    best = min(models, key=lambda model: pixel_errors(points(model, valid), data.points[valid]).mean())
    return lambda rows: points(best, rows)


@BASELINES.register("oracle")
def oracle(data: Prepared, params: LandmarksBaselines) -> Predictor | None:
    """The drawn landmarks, whose only error is the noise of the labels; None for data that were not drawn."""
    truth = data.truth()
    return None if truth is None else lambda rows: truth[rows]


def predict(predictor: Predictor, rows: NDArray[np.int64]) -> Predicted:
    """A baseline's prediction, without uncertainty."""
    return Predicted(predictor(rows), np.zeros((len(rows), len(UNCERTAINTY_FEATURES))))


def baselines(data: Prepared, params: LandmarksBaselines) -> dict[str, Baseline]:
    predictors = {name: make(data, params) for name, make in BASELINES.items()}
    return {name: Baseline(params.model_dump(), {}, partial(_evaluate, p, data)) for name, p in predictors.items() if p}


def _evaluate(predictor: Predictor, data: Prepared, out: Path, record: Record) -> Metrics:
    """Calibrate a baseline on the validation part and score the test part."""
    valid, test = data.rows("valid"), data.rows("test")
    calibration = Calibration.fit(predict(predictor, valid), data.points[valid])
    predicted = predict(predictor, test)
    return evaluate(data, test, predicted.points, calibration(predicted.uncertainty), record=record, out=out)
