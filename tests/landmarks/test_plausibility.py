"""Annotations in other units, of other pictures or in another order are refused wherever a folder is read: row and remedy."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from quintet.errors import InputProblemsError
from quintet.imaging.pictures import read_grey
from quintet.landmarks.data.anatomy import SWAPPED
from quintet.landmarks.data.plausibility import inverted, problem, problem_of_all
from quintet.landmarks.data.prepare import check, prepare, read_annotations
from quintet.landmarks.prediction import _pictures, evaluate_folder

SIZE = 96


@pytest.fixture
def folder(raw, tmp_path):
    return Path(shutil.copytree(raw, tmp_path / "raw"))


def rewrite(folder, change, rows=slice(None)):
    """Replace the points `[15, 2]` of some rows; returns how many there are."""
    path = folder / "annotations.csv"
    table = list(csv.reader(path.open()))
    for cells in table[rows]:
        cells[1:-1] = change(np.array(cells[1:-1], float).reshape(15, 2)).round(4).ravel().astype(str).tolist()
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(table)
    return len(table)


FAULTS = {
    "fractions": (lambda p: p / SIZE, "all landmarks lie within two pixels"),
    "percent of a fraction": (lambda p: p / SIZE * 2, "all landmarks lie within two pixels"),
    "rows before columns": (lambda p: p[:, ::-1], "are x and y exchanged"),
    "from the bottom": (lambda p: np.stack([p[:, 0], SIZE - p[:, 1]], 1), "does y run upwards"),
    "sides exchanged": (lambda p: p[SWAPPED], "is not left of landmark"),
    "of a thumbnail": (lambda p: p * 0.4, "not of a smaller or larger copy"),
    "of the original": (lambda p: p * 3.4, "is outside the image of"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_every_wrong_row_is_named(folder, make_params, kind):
    change, message = FAULTS[kind]
    rewrite(folder, change, slice(2, 5))
    problems = check(folder, make_params().landmarks)
    named = [p for p in problems if message in p]
    assert [p.split(":")[0] for p in named] == [f"annotations.csv row {n}" for n in (3, 4, 5)]
    assert len(problems) == 3


@pytest.mark.parametrize("scale", [0.75, 0.8])
def test_a_slightly_smaller_copy_shows_in_the_mean_alone(folder, make_params, scale):
    rewrite(folder, lambda p: p * scale)
    assert any("the landmarks' centre is on average at" in p for p in check(folder, make_params().landmarks))
    skipping = make_params({"landmarks.data.on_error": "skip"}).landmarks  # leaves out rows, but none of them is to blame
    with pytest.raises(InputProblemsError, match="centre is on average at"):
        prepare(folder, folder.parent / "prepared", skipping)


def test_evaluate_is_as_strict_as_check(folder, make_params, tmp_path):
    """Every broken row is named, before a run is read: no file, points outside, axes exchanged."""
    rewrite(folder, lambda p: p[:, ::-1], slice(1, 3))
    rewrite(folder, lambda p: p + 60, slice(4, 5))
    read_annotations(folder)[0][6].file.write_bytes(b"")
    with pytest.raises(InputProblemsError) as caught:
        evaluate_folder([tmp_path / "no run"], folder, tmp_path / "out", "cpu")
    assert sorted(caught.value.problems) == sorted(check(folder, make_params().landmarks))
    assert len(caught.value.problems) == 4


def test_inverted_pictures_are_named(folder, make_params):
    for row in read_annotations(folder)[0][2:5]:
        ImageOps.invert(Image.open(row.file).convert("L")).save(row.file)
    problems = check(folder, make_params().landmarks)
    assert [p.split(":")[0] for p in problems] == [f"annotations.csv row {n}" for n in (3, 4, 5)]
    assert all("is the picture inverted" in p for p in problems)


def test_inversion_is_seen_in_dark_pictures_too(folder, make_params):
    for row in read_annotations(folder)[0][2:5]:
        inverted_picture = 255 - np.asarray(Image.open(row.file).convert("L"))
        Image.fromarray((inverted_picture // 8).astype(np.uint8)).save(row.file)
    assert sum("is the picture inverted" in p for p in check(folder, make_params().landmarks)) == 3


def test_rows_with_the_landmarks_of_another_row_and_pictures_without_a_row(folder, make_params, capsys):
    path = folder / "annotations.csv"
    rows = [line.split(",") for line in path.read_text().splitlines()]
    rows[7][1:-1] = rows[2][1:-1]
    path.write_text("".join(",".join(row) + "\n" for row in rows[:-3]))
    (problem_text,) = check(folder, make_params().landmarks)
    assert problem_text.startswith(f"annotations.csv row 8: {rows[7][-1]} has the landmarks of row 3")
    assert "note: 3 pictures below" in capsys.readouterr().out


def test_quoted_decimal_commas(folder, make_params):
    path = folder / "annotations.csv"
    cells = [line.split(",") for line in path.read_text().splitlines()]
    path.write_text(
        "".join(",".join([r[0], *(f'"{float(c):.1f}"'.replace(".", ",") for c in r[1:-1]), r[-1]]) + "\n" for r in cells)
    )
    (problem_text,) = check(folder, make_params().landmarks)
    assert "decimal commas; write points" in problem_text


def test_of_real_pictures_the_inverted_ones_alone_are_called_so(real_landmarks):
    for row in read_annotations(real_landmarks)[0]:
        grey = read_grey(row.file)
        assert not inverted(row.points_px, grey), row.stem
        assert inverted(row.points_px, 1 - grey), row.stem


def test_real_annotations_raise_no_false_alarm(real_landmarks):
    rows, problems = read_annotations(real_landmarks)
    assert not problems
    fractions, sizes = [], []
    for row in rows:
        width, height = Image.open(row.file).size
        assert not problem(row.points_px, width, height), row.stem
        fractions.append(row.points_px / [width, height])
        sizes.append((width, height))
    assert not problem_of_all(np.stack(fractions), sizes)


@pytest.mark.parametrize("orientation", [2, 3, 5, 6, 8])
def test_a_turned_photograph_is_read_as_viewers_show_it(tmp_path, orientation):
    upright = np.zeros((40, 60), np.uint8)
    upright[:10, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    for turned in (Image.fromarray(upright).transpose(t) for t in Image.Transpose):
        turned.save(tmp_path / "x.png", exif=exif)
        shown = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "x.png")))
        assert np.array_equal(read_grey(tmp_path / "x.png") * 255, shown)


def test_hidden_files_are_left_out_and_other_files_counted(tmp_path, capsys):
    for name in ("a.png", "b/c.JPG", "._a.png", ".ipynb_checkpoints/a.png", "__MACOSX/a.png", "d.tif", "IM0001"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert _pictures(tmp_path) == [tmp_path / "a.png", tmp_path / "b/c.JPG"]
    assert "1 without suffix, 1 .tif (such as IM0001)" in capsys.readouterr().out


def test_landmarks_that_were_not_annotated_are_named(folder, make_params):
    """Written as 0, 0: a corner of the image, which a mean hides."""

    def without(landmark):
        def change(points):
            points = points.copy()
            points[landmark] = 0
            return points

        return change

    for row, landmark in ((1, 8), (2, 9), (4, 13), (6, 4)):
        rewrite(folder, without(landmark), slice(row, row + 1))
    problems = check(folder, make_params().landmarks)
    assert len(problems) == 4
    for landmark, problem_text in zip((8, 9, 13, 4), problems, strict=True):
        assert f"landmark {landmark}" in problem_text or "is not left of" in problem_text


@pytest.mark.parametrize("order", [[6, 7, 4, 5, 2, 3], [4, 5, 2, 3, 6, 7]])
def test_pairs_whose_levels_are_exchanged(folder, make_params, order):
    def exchange(points):
        points = points.copy()
        points[[2, 3, 4, 5, 6, 7]] = points[order]
        return points

    rewrite(folder, exchange)
    problems = check(folder, make_params().landmarks)
    assert len(problems) >= len(read_annotations(folder)[0])
    assert all("away from its place in the scheme" in p for p in problems)


def test_images_of_which_some_were_enlarged(folder, make_params):
    for row in read_annotations(folder)[0][:15]:
        image = Image.open(row.file)
        image.resize((image.width * 3 // 2, image.height * 3 // 2)).save(row.file)
    (found,) = [p for p in check(folder, make_params().landmarks) if "on average" in p]
    assert "in 15 images of" in found
