"""The drawn X-rays have the format of the real data, do not depend on the number of workers, and match their landmarks."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.random import default_rng
from PIL import Image

from quintet.landmarks import synthetic
from quintet.landmarks.drawing import expose
from quintet.landmarks.synthetic import CATEGORIES, LEVELS, MIDLINE, SIDES, draw_person, moved, plan, synthesize, truth

PAIRS = ((2, 3), (4, 5), (6, 7), (11, 12), (13, 14))  # the first of each pair is on the image's left
SIZE = 96


def phantom(rng, category, size, *, shot=None):
    """One X-ray with its exact landmarks; `rng` is the person, `shot` the exposure."""
    shot = shot or rng
    person = moved(draw_person(rng, category), shot)
    return expose(person, shot, size), truth(person, size)


def read(folder: Path) -> tuple[list[list[str]], np.ndarray]:
    """Rows of annotations.csv and their points [N, 15, 2]."""
    with (folder / "annotations.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    return rows, np.array([[int(v) for v in row[1:31]] for row in rows]).reshape(-1, 15, 2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    synthesize(folder, images=80, size=SIZE, seed=5, label_noise_px=1.5)
    return folder


@pytest.fixture(scope="module")
def phantoms() -> list[tuple[np.ndarray, np.ndarray]]:
    return [phantom(default_rng(i), list(CATEGORIES)[i % 3], 299) for i in range(30)]


def test_format(dataset: Path) -> None:
    rows, points = read(dataset)
    assert [row[0] for row in rows] == [str(i) for i in range(80)]
    assert {len(row) for row in rows} == {32}
    assert len({row[31] for row in rows}) == 80
    assert points.min() >= 0
    assert points.max() < SIZE
    for row in rows:
        with Image.open(dataset / "images" / row[31].rsplit("-", 1)[0].replace(" ", "_") / f"{row[31]}.png") as image:
            assert (image.size, image.mode) == ((SIZE, SIZE), "L")
    assert len(list(dataset.rglob("*.png"))) == 80


def test_rows_are_shuffled(dataset: Path) -> None:
    categories = [row[31].rsplit("-", 1)[0] for row in read(dataset)[0]]
    assert categories != [category for category, _ in plan(80)]


def test_same_files_for_any_number_of_workers(tmp_path: Path) -> None:
    for workers in (1, 2):
        synthesize(tmp_path / str(workers), images=24, size=64, seed=9, label_noise_px=2.0, workers=workers)
    files = sorted(p.relative_to(tmp_path / "1") for p in (tmp_path / "1").rglob("*") if p.is_file())
    assert len(files) == 26
    for name in files:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_an_image_does_not_depend_on_the_number_of_images(tmp_path: Path) -> None:
    for images in (6, 12):
        synthesize(tmp_path / str(images), images=images, size=48, seed=2, label_noise_px=1.0)
    few = sorted((tmp_path / "6").rglob("*.png"))
    assert len(few) == 6
    for path in few:
        assert path.read_bytes() == (tmp_path / "12" / path.relative_to(tmp_path / "6")).read_bytes()


def test_the_truth_differs_from_the_labels_by_the_noise_alone(dataset: Path) -> None:
    rows, labels = read(dataset)
    with (dataset / "truth.csv").open(newline="") as file:
        true_rows = list(csv.reader(file))
    assert [row[31] for row in true_rows] == [row[31] for row in rows]
    truth = np.array([[float(v) for v in row[1:31]] for row in true_rows]).reshape(-1, 15, 2)
    residual = (labels - truth)[:, 0]  # landmark 0 has the noise of one axis end
    assert residual.std() == pytest.approx(np.hypot(1.5 * SIZE / 299, 1 / np.sqrt(12)), rel=0.2)  # and the rounding
    assert np.abs(residual.mean()) < 0.15


def test_another_seed_gives_other_images(tmp_path: Path) -> None:
    for seed in (1, 2):
        synthesize(tmp_path / str(seed), images=1, size=48, seed=seed, label_noise_px=1.0)
    one, two = (next((tmp_path / seed).rglob("*.png")) for seed in ("1", "2"))
    assert one.read_bytes() != two.read_bytes()


def test_categories_and_second_exposures_are_as_often_as_in_the_reference() -> None:
    rows = plan(957)
    assert Counter(category for category, _ in rows) == CATEGORIES
    second = [(i, person) for i, (_, person) in enumerate(rows) if person != i]
    assert len(second) == 47
    for i, person in second:
        assert rows[i][0] == rows[person][0]


def test_a_second_exposure_shows_the_same_person() -> None:
    def pixels(person: int, shot: int) -> tuple[np.ndarray, np.ndarray]:
        return phantom(default_rng(person), "Normal", 128, shot=default_rng(shot))

    (first, here), (second, there), (other, elsewhere) = pixels(1, 1), pixels(1, 2), pixels(3, 1)
    assert not np.array_equal(first, second)
    assert np.abs(here - there).max() < 6
    assert np.abs(here - elsewhere).max() > 6
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.9 > np.corrcoef(first.ravel(), other.ravel())[0, 1]


def test_left_and_right(dataset: Path) -> None:
    points = read(dataset)[1]
    for left, right in PAIRS:
        assert (points[:, left, 0] < points[:, right, 0]).all()


def test_template_has_levels_and_perpendicular_offsets() -> None:
    offsets = np.array([[10.0, 20, 30, 40, 50], [11, 21, 31, 41, 51]])
    points = synthetic.template(np.array([100.0, 20.0]), np.array([160.0, 100.0]), offsets)  # 100 px long, in a 3-4-5 triangle
    np.testing.assert_allclose(points[9], [130, 60])
    np.testing.assert_allclose(points[5] - points[9], [31 * 0.8, -31 * 0.6])
    along = (points - points[0]) @ [0.6, 0.8]
    for landmarks in (MIDLINE, *SIDES):
        np.testing.assert_allclose(along[list(landmarks)], 100 * LEVELS, atol=1e-9)


def test_label_noise_has_the_requested_size() -> None:
    person = synthetic.draw_person(default_rng(0), "Normal")
    exact = synthetic.template(*synthetic.ends(person), person.offsets_px)
    noisy = np.array([synthetic.label(person, default_rng(i), 299, 2.0) for i in range(400)])
    assert (noisy - exact)[:, 0].std(axis=0) == pytest.approx(2.0, abs=0.3)
    assert np.abs((noisy - exact).mean(axis=0)).max() < 0.5


def test_lungs_are_between_their_landmarks(phantoms: list[tuple[np.ndarray, np.ndarray]]) -> None:
    def grey(image: np.ndarray, x: float, y: float) -> float:
        row, column = int(np.clip(y, 4, 294)), int(np.clip(x, 4, 294))
        return float(image[row - 4 : row + 5, column - 4 : column + 5].mean())

    darker = []
    for image, points in phantoms:
        spine = grey(image, *points[9])
        for edge, share in ((4, 0.6), (5, 0.6), (2, 0.6), (3, 0.6)):
            middle = points[9] if edge > 3 else points[8]
            darker.append(grey(image, *(middle + share * (points[edge] - middle))) < spine)
        below = points[1] + 0.5 * (points[13] - points[1])
        base = points[9] + 0.1 * (points[1] - points[0]) + 0.6 * (points[4] - points[9])
        darker.append(grey(image, *base) < grey(image, *below))
    assert len(darker) == 150
    assert np.mean(darker) > 0.95


def test_lung_wall_is_at_its_landmark(phantoms: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """The mean profile from lung to chest wall rises most steeply at landmarks 4 and 5."""
    for edge, sign in ((4, -1), (5, 1)):
        profiles = []
        for image, points in phantoms:
            x = np.arange(-14, 15) * sign + points[edge, 0]
            profiles.append(np.interp(x, np.arange(299), image[round(points[edge, 1])].astype(float)))
        assert len(profiles) == 30
        assert abs(np.argmax(np.gradient(np.mean(profiles, axis=0))) - 14) <= 3


@pytest.mark.parametrize("size", [64, 299])
def test_landmarks_scale_with_the_image(size: int) -> None:
    image, points = phantom(default_rng(4), "COVID", size)
    assert (image.shape, image.dtype, points.shape) == ((size, size), np.uint8, (15, 2))
    expected = phantom(default_rng(4), "COVID", 598)[1] * size / 598
    np.testing.assert_allclose(points, expected, atol=1)
