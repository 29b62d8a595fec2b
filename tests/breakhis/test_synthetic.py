import numpy as np
import pandas as pd
import pytest
from PIL import Image

from quintet.breakhis.data.prepared import load
from quintet.breakhis.data.tree import MAGNIFICATIONS, read_tree
from quintet.breakhis.synthetic import Biopsy, field, synthesize
from quintet.files import md5


def test_a_patient_depends_only_on_seed_and_number(tmp_path):
    for name, count in (("few", 2), ("more", 3)):
        synthesize(tmp_path / name, patients=count, width=64, seed=5, workers=1)
    patient = "benign/SOB/adenosis/SOB_B_A_14-10037"
    assert md5(tmp_path / "few" / patient) == md5(tmp_path / "more" / patient)
    assert md5(tmp_path / "few") != md5(tmp_path / "more")


def test_tree_of_patients_types_and_counts(slides):
    images, problems = read_tree(slides)
    assert not problems
    counts = pd.Series([(i.patient, i.magnification) for i in images]).value_counts()
    assert counts.between(4, 20).all()
    assert len(counts) == 20 * len(MAGNIFICATIONS)
    types = pd.DataFrame([(i.patient, i.tumour_type) for i in images]).groupby(0)[1].nunique()
    assert (types == 2).sum() == 1  # one patient with images of two types
    assert Image.open(images[0].path).size == (64, 42)


def dark_share(biopsy, magnification):
    pictures = [field(biopsy, magnification, 140, np.random.default_rng(k)) for k in range(3)]
    return np.mean([(p[..., 0] < 120).mean() for p in pictures])


def white_share(biopsy, magnification):
    pictures = [field(biopsy, magnification, 140, np.random.default_rng(k)) for k in range(3)]
    return np.mean([(p.min(-1) > 190).mean() for p in pictures])


def biopsy(order, atypia):
    random = Biopsy.sample("tubular_adenoma", np.random.default_rng(0))
    return Biopsy(random.pattern, order, atypia, random.stain, np.ones(2), random.light)


def test_glands_show_at_40x_and_nuclei_at_400x():
    """Open glands are white holes in the wide field; atypical nuclei fill the narrow one."""
    assert white_share(biopsy(1, 0), "40X") > 3 * white_share(biopsy(-1, 0), "40X")
    assert dark_share(biopsy(0, 1.5), "400X") > 1.5 * dark_share(biopsy(0, -1.5), "400X")


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
    picture = field(biopsy(0.5, 0.5), magnification, 140, np.random.default_rng(0))
    assert picture.shape == (92, 140, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 10
