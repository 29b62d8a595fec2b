import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quintet.breakhis.analysis import analyze
from quintet.breakhis.data.classes import MAGNIFICATIONS
from quintet.breakhis.data.prepare import check, prepare
from quintet.breakhis.data.prepared import load
from quintet.breakhis.prediction import find_patients
from quintet.errors import InputError, InputProblemsError
from quintet.imaging.folders import files_below, with_suffix
from quintet.imaging.pictures import PICTURES
from tests.breakhis.conftest import SMALL


@pytest.fixture
def tree(slides, tmp_path):
    return shutil.copytree(slides, tmp_path / "raw")


def test_arrays_index_and_folds(slides, slide_arrays):
    data = load(slide_arrays)
    assert len(data.table) == len(with_suffix(files_below(slides), PICTURES)[0]) == sum(len(a) for a in data.images.values())
    for m in MAGNIFICATIONS:
        images = data.table[data.table["magnification"] == m]
        assert images["row"].tolist() == list(range(len(images)))
        assert data.images[m].shape[1:] == (32, 32, 3)
        assert isinstance(data.images[m], np.memmap)
    row = data.table.iloc[100]
    picture = Image.open(slides / row["file"]).resize((32, 32), Image.Resampling.BILINEAR, reducing_gap=3.0)
    np.testing.assert_array_equal(data.images[row["magnification"]][row["row"]], np.asarray(picture))
    assert set(data.folds["part"]) == {"train", "valid", "test"}
    shares = data.types(sorted(set(data.table["patient"])))
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-6)
    assert ((shares > 0).sum(1) == 2).sum() == 1  # the patient with images of two types


def test_rows_of_patients(slide_arrays):
    data = load(slide_arrays)
    names = data.patients("test", 0)
    patients = data.image_rows(names, ["100X", "400X"])
    for name, rows in zip(patients.names, patients.rows, strict=True):
        for m, expected in zip(["100X", "400X"], rows, strict=True):
            table = data.table[data.table["magnification"] == m].set_index("row")
            assert set(table.loc[expected, "patient"]) == {name}


def test_a_picture_in_two_patients_of_different_parts_fails_with_both_paths(tree, tmp_path, make_params):
    params = make_params(SMALL).breakhis
    prepared, _ = prepare(tree, tmp_path / "out", params)
    tested, trained = (
        prepared.table[prepared.table["patient"].isin(prepared.patients(part, 0))].iloc[0] for part in ("test", "train")
    )
    shutil.copy(tree / tested["file"], tree / trained["file"])
    with pytest.raises(InputProblemsError) as caught:
        prepare(tree, tmp_path / "again", params)
    for row in (tested, trained):
        assert str(tree / row["file"]) in str(caught.value)
    assert "test and train in fold 0" in str(caught.value) or "train and test in fold 0" in str(caught.value)
    assert not (tmp_path / "again").exists()
    assert any(tested["image"] in problem and trained["image"] in problem for problem in check(tree, params))


def test_a_relative_path_gives_the_same_prepared_data(slides, slide_arrays, tmp_path, make_params, monkeypatch):
    monkeypatch.chdir(slides.parent)
    prepare(Path(slides.name), tmp_path / "out", make_params(SMALL).breakhis)
    assert (tmp_path / "out" / "index.csv").read_text() == (slide_arrays / "index.csv").read_text()


def test_a_picture_twice_within_a_patient_is_not_a_leak(tree, tmp_path, make_params):
    files = sorted((tree / "benign/SOB/adenosis").glob("*/40X/*.png"))
    shutil.copy(files[0], files[1])
    prepare(tree, tmp_path / "out", make_params(SMALL).breakhis)


def test_one_file_at_two_magnifications_is_refused(tree, tmp_path, make_params):
    patient = next((tree / "benign/SOB/adenosis").iterdir())
    low, high = (sorted((patient / m).glob("*.png"))[0] for m in ("40X", "100X"))
    shutil.copy(low, high)
    with pytest.raises(InputProblemsError, match="the same file at two magnifications"):
        prepare(tree, tmp_path / "out", make_params(SMALL).breakhis)


def test_unreadable_images_are_all_listed_or_all_skipped(tree, tmp_path, make_params):
    files = with_suffix(files_below(tree), PICTURES)[0]
    files[40].write_bytes(files[40].read_bytes()[:300])
    files[90].write_bytes(b"")
    Image.new("I;16", (64, 42)).save(files[130])
    Image.new("L", (64, 42)).save(files[131])
    Image.new("1", (64, 42)).save(files[132])
    with pytest.raises(InputProblemsError) as caught:
        prepare(tree, tmp_path / "out", make_params(SMALL).breakhis)
    assert len(caught.value.problems) == 5
    for path, expected in (
        (files[40], "corrupt or truncated"),
        (files[90], "empty"),
        (files[130], "a greyscale picture (mode I;16)"),
        (files[132], "mode 1"),
    ):
        assert any(str(path) in p and expected in p for p in caught.value.problems)
    assert "on_error=skip" in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert set(check(tree, make_params(SMALL).breakhis)) == set(caught.value.problems)
    prepared, skipped = prepare(tree, tmp_path / "out", make_params(SMALL | {"breakhis.data.on_error": "skip"}).breakhis)
    assert len(skipped) == 5
    assert len(prepared.table) == len(files) - 5


def test_missing_magnifications_are_not_an_error(tree, tmp_path, make_params, capsys):
    for patient in sorted((tree / "benign/SOB/adenosis").iterdir()):
        shutil.rmtree(patient / "40X")
    params = make_params(SMALL).breakhis
    assert check(tree, params) == []
    assert "has no image at 40X" in capsys.readouterr().out
    prepare(tree, tmp_path / "out", params)
    analyze(tree, tmp_path / "page.html", params)
    page = (tmp_path / "page.html").read_text()
    assert "has no image at" in page


def test_page(slides, tmp_path, make_params):
    analyze(slides, tmp_path / "page.html", make_params(SMALL).breakhis)
    page = (tmp_path / "page.html").read_text()
    assert "of 20 patients, 12 of them malignant" in page
    for heading in (
        "Images by type",
        "Images per patient",
        "Folds",
        "Images used in an epoch",
        "Stain",
        "Missing magnifications",
    ):
        assert heading in page
    assert page.count("data:image/png;base64") == 1


def test_real_images(real_slides, tmp_path, make_params, capsys):
    """64 images of 30 patients, 8 of them benign; official folds name them all."""
    params = make_params(SMALL | {"breakhis.raw": str(real_slides)}).breakhis
    assert check(real_slides, params) == []
    assert capsys.readouterr().out.count("note: patient") == 29
    prepared, skipped = prepare(real_slides, tmp_path / "grouped", params)
    assert (len(prepared.table), len(skipped)) == (64, 0)
    official = make_params(SMALL | {"breakhis.data.split": "official", "breakhis.data.folds": 5}).breakhis
    prepared, _ = prepare(real_slides, tmp_path / "official", official)
    assert prepared.fold_count == 5
    assert any("14-13412" in note and "in training and test" in note for note in prepared.notes)
    analyze(real_slides, tmp_path / "page.html", official)
    assert "dsfold1.txt puts patient 14-13412" in (tmp_path / "page.html").read_text()


def test_patients_of_folders_as_people_have_them(tmp_path, capsys):
    """The data set's own folds hold several patients in one folder; factors come as 100x or 200; some pictures lie elsewhere."""
    pixels = Image.new("RGB", (16, 16))

    def put(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels.save(path)

    for part, names in (("train", ["SOB_B_A-14-1AB", "SOB_M_DC-14-2"]), ("test", ["SOB_M_LC-14-3"])):
        for name in names:
            for factor in ("40X", "100X"):
                put(tmp_path / "fold1" / part / factor / f"{name}-{factor[:-1]}-001.png")
    for factor in ("40x", "200"):
        put(tmp_path / "mine" / factor / "slide 1.png")
    put(tmp_path / "overview.png")
    put(tmp_path / ".cache" / "40X" / "a.png")
    found = find_patients(tmp_path)
    assert {name: sorted(files) for name, files in found.items()} == {
        "14-1AB": ["100X", "40X"],
        "14-2": ["100X", "40X"],
        "14-3": ["100X", "40X"],
        "mine": ["200X", "40X"],
    }
    assert all(len(paths) == 1 for files in found.values() for paths in files.values())
    assert "1 .png (such as overview.png)" in capsys.readouterr().out
    put(tmp_path / "fold1" / "train" / "40X" / "unknown.png")
    with pytest.raises(InputError, match=r"beside others, such as .*; rename it if it is a copy"):
        find_patients(tmp_path)


@pytest.mark.parametrize("magnification", ["40X", "200X", "400X"])
def test_one_file_of_two_patients_is_refused_whatever_their_parts(tree, small, magnification):
    pictures = [next(folder.glob("*.png")) for folder in sorted(tree.glob(f"benign/SOB/*/*/{magnification}"))]
    assert len(pictures) > 4
    for other in pictures[1:]:
        shutil.copy(pictures[0], other)
    problems = [p for p in check(tree, small.breakhis) if "picture" in p or "same file" in p]
    for other in pictures[1:]:
        assert any(str(other.name) in problem for problem in problems)
