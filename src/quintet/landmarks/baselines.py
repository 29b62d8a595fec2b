"""What a network must beat: the mean shape, and ridge regression on a small image. No torch."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import Ridge

from quintet.landmarks.anatomy import LANDMARKS, Points
from quintet.landmarks.data import Prepared
from quintet.landmarks.evaluation import SIGNS, Predicted, pixel_errors
from quintet.params.landmarks import LandmarksBaselines
from quintet.registry import Registry

BASELINES = Registry("baseline")
Fitted = Callable[[NDArray[np.int64]], Points]  # rows -> points


@BASELINES.register
def mean_shape(data: Prepared, how: LandmarksBaselines) -> Fitted:
    """Every landmark at its mean position over the training images."""
    mean = data.points[data.rows("train")].mean(0)
    return lambda rows: np.repeat(mean[None], len(rows), axis=0)


@BASELINES.register
def ridge(data: Prepared, how: LandmarksBaselines) -> Fitted:
    """Ridge regression on the pixels of a small image; the penalty is the one that is best on validation."""
    small = np.stack([np.asarray(Image.fromarray(i).resize((how.ridge_size,) * 2, Image.Resampling.BOX)) for i in data.images])
    pixels = small.reshape(len(small), -1) / np.float32(255)
    train, valid = data.rows("train"), data.rows("valid")
    fitted = [Ridge(alpha=alpha).fit(pixels[train], data.points[train].reshape(len(train), -1)) for alpha in how.ridge_alphas]

    def points(model: Ridge, rows: NDArray[np.int64]) -> Points:
        return np.asarray(model.predict(pixels[rows])).reshape(-1, LANDMARKS, 2)

    best = min(fitted, key=lambda model: pixel_errors(points(model, valid), data.points[valid]).mean())
    return lambda rows: points(best, rows)


def predict(fitted: Fitted, rows: NDArray[np.int64]) -> Predicted:
    """A baseline's prediction; it knows no doubt."""
    points = fitted(rows)
    return Predicted(points, np.zeros((len(rows), len(SIGNS))))
