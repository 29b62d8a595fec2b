from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import binary_opening, gaussian_filter
from scipy.stats import norm
from sklearn.metrics import balanced_accuracy_score

from quintet.breakhis.data.classes import MAGNIFICATIONS, class_of
from quintet.breakhis.data.prepared import load
from quintet.breakhis.data.tree import read_tree
from quintet.breakhis.synthetic import PATTERNS, TRAITS, TYPE_CYCLE, Biopsy, field, synthesize
from quintet.files import md5


def test_a_patient_depends_only_on_seed_and_number(tmp_path):
    for name, count in (("few", 2), ("more", 3)):
        synthesize(tmp_path / name, patients=count, width=64, separation=1.5, seed=5, workers=1)
    patient = "benign/SOB/adenosis/SOB_B_A_14-10037"
    assert md5(tmp_path / "few" / patient) == md5(tmp_path / "more" / patient)
    assert md5(tmp_path / "few") != md5(tmp_path / "more")


def test_tree_of_patients_types_and_counts(slides):
    images, problems = read_tree(slides)
    assert not problems
    counts = pd.Series([(i.patient, i.magnification) for i in images]).value_counts()
    assert counts.between(2, 6).all()
    assert len(counts) == 20 * len(MAGNIFICATIONS)
    types = pd.DataFrame([(i.patient, i.tumour_type) for i in images]).groupby(0)[1].nunique()
    assert (types == 2).sum() == 1  # one patient with images of two types
    assert Image.open(images[0].path).size == (64, 42)


def biopsy(density=1.0, **traits):
    random = Biopsy.sample("tubular_adenoma", 1.5, np.random.default_rng(0))
    return replace(random, traits=dict.fromkeys(TRAITS, 0.0) | traits, density=np.full(2, density), strength=np.ones(2))


def statistic(measure, magnification, **traits):
    """The mean of a measure over pictures of a biopsy with these traits."""
    return np.mean([measure(field(biopsy(**traits), magnification, 112, np.random.default_rng(k))) for k in range(12)])


def white(picture):
    return (picture.min(-1) > 190).mean()


def blue(picture):
    """Where there are nuclei."""
    return (picture[..., 0] < 140).astype(float)


def clumped(picture):
    """How unevenly the nuclei lie, at the size of a lobule."""
    return gaussian_filter(blue(picture), 8).std() / blue(picture).mean()


def correlated(picture):
    """The correlation of neighbouring pixels of the stroma."""
    red = picture[..., 0].astype(float)
    return max(np.corrcoef(red[1:].ravel(), red[:-1].ravel())[0, 1], np.corrcoef(red[:, 1:].ravel(), red[:, :-1].ravel())[0, 1])


def nucleus_size(picture):
    """The mean area of what is left of nuclei after an opening, relative to all of them."""
    dark = blue(picture) > 0
    return binary_opening(dark, iterations=2).sum() / max(1, dark.sum())


def test_each_trait_shows_where_its_structures_are_resolved():
    assert statistic(clumped, "40X", lobules=-2) > 1.2 * statistic(clumped, "40X", lobules=2)
    for magnification in ("40X", "100X"):
        assert statistic(white, magnification, glands=-2) > 2 * statistic(white, magnification, glands=2)
    coarse, fine = (statistic(correlated, "200X", stroma=stroma, density=0.0) for stroma in (2, -2))
    assert coarse > fine + 0.1
    assert statistic(nucleus_size, "400X", nuclei=2) > 2 * statistic(nucleus_size, "400X", nuclei=-2)


def test_the_traits_predict_the_class_as_well_as_stated():
    """Phi(d sqrt(k) / 2) from k traits; the traits of one class are independent of each other."""
    rng = np.random.default_rng(0)
    classes = np.repeat([0, 1], 4000)
    names = np.where(classes == 1, "ductal_carcinoma", "adenosis")
    traits = np.array([list(Biopsy.sample(name, 1.5, rng).traits.values()) for name in names])
    for count, expected in ((1, 0.773), (2, 0.856), (4, 0.933)):
        assert balanced_accuracy_score(classes, traits[:, :count].sum(1) > 0) == pytest.approx(expected, abs=0.012)
    assert np.abs(np.corrcoef(traits[classes == 1].T) - np.eye(4)).max() < 0.05


def test_the_pattern_of_growth_says_nothing_about_the_class():
    for names, _ in PATTERNS:
        classes = [class_of(name) for name in TYPE_CYCLE if name in names]
        assert (classes.count("benign"), classes.count("malignant")) == (2, 3)


def test_the_truth_has_the_bayes_posterior_and_travels_with_the_prepared_data(slides, slide_arrays):
    truth = pd.read_csv(slides / "truth.csv")
    for row in truth.to_dict("records"):
        ratio = 3 / 2 * np.prod([norm.pdf(row[t], 0.75) / norm.pdf(row[t], -0.75) for t in TRAITS])
        assert row["probability"] == pytest.approx(ratio / (1 + ratio), abs=1e-5)
    prepared = load(slide_arrays).truth
    assert set(prepared["patient"]) == set(load(slide_arrays).table["patient"])
    pd.testing.assert_frame_equal(prepared, truth)


def test_stain_identifies_the_patient_and_not_the_class(slide_arrays):
    """The nearest neighbour in mean colour is of the same patient far more often than by chance: a split by image would leak."""
    data = load(slide_arrays)
    images = data.table[data.table["magnification"] == "200X"]
    colours = np.stack([data.images["200X"][row].mean((0, 1)) for row in images["row"]])
    distance = np.linalg.norm(colours[:, None] - colours, axis=-1)
    np.fill_diagonal(distance, np.inf)
    patients, classes = images["patient"].to_numpy(), images["class"].to_numpy()
    same = (patients[distance.argmin(1)] == patients).mean()
    assert same > 6 * 1 / 20
    by_images = (classes[distance.argmin(1)] == classes).mean()
    distance[patients[:, None] == patients] = np.inf
    by_patients = (classes[distance.argmin(1)] == classes).mean()
    assert by_images > by_patients + 0.1  # the leak
    assert by_patients < 0.75


@pytest.mark.parametrize("magnification", MAGNIFICATIONS)
def test_pictures_are_pictures(magnification):
    picture = field(biopsy(nuclei=1.0), magnification, 140, np.random.default_rng(0))
    assert picture.shape == (92, 140, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 10
