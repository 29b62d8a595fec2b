"""From the raw folder to arrays, and every kind of bad input that is reported."""

import shutil
import unicodedata

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from quintet.errors import InputError, InputProblemsError
from quintet.landmarks.analysis import label_grid, write_data_page
from quintet.landmarks.data.prepare import check, prepare, read_annotations

SMALL = {"landmarks.data.size": 32, "landmarks.data.clahe": 0.0}


@pytest.fixture
def broken(raw, tmp_path):
    """A copy of the phantoms that a test can damage."""
    folder = tmp_path / "raw"
    shutil.copytree(raw, folder)
    return folder


def rows_of(folder):
    return [line.split(",") for line in (folder / "annotations.csv").read_text().splitlines()]


def write_rows(folder, rows):
    (folder / "annotations.csv").write_text("".join(",".join(row) + "\n" for row in rows))


def image_of(folder, stem):
    return next((folder / "images").glob(f"*/{stem}.png"))


def damage_missing(folder, rows):
    image_of(folder, rows[0][-1]).unlink()
    return ["row 1", rows[0][-1], "no image"]


def damage_stem_twice(folder, rows):
    write_rows(folder, [*rows, rows[2]])
    return ["row 41", rows[2][-1], "is also in row 3"]


def damage_image_twice(folder, rows):
    image = image_of(folder, rows[0][-1])
    (folder / "images" / "elsewhere").mkdir()
    shutil.copy(image, folder / "images" / "elsewhere" / f"{image.stem}.jpg")
    return ["row 1", "2 images of that name", "elsewhere"]


def damage_columns(folder, rows):
    write_rows(folder, [rows[0][:-2] + rows[0][-1:], *rows[1:]])
    return ["row 1", "expected 32 columns", "got 31"]


def damage_number(folder, rows):
    rows[1][3] = "twelve"
    write_rows(folder, rows)
    return ["row 2", "x1 is 'twelve', not a number"]


def damage_nan(folder, rows):
    rows[1][3] = "nan"
    write_rows(folder, rows)
    return ["row 2", "not finite"]


def damage_negative(folder, rows):
    rows[1][4] = "-3"
    write_rows(folder, rows)
    return ["row 2", "landmark 1 has a negative coordinate"]


def damage_outside(folder, rows):
    rows[1][1] = "97"
    write_rows(folder, rows)
    return ["row 2", "landmark 0", "outside the image of 96 x 96"]


def damage_truncated(folder, rows):
    path = image_of(folder, rows[3][-1])
    path.write_bytes(path.read_bytes()[:400])
    return ["row 4", str(path), "corrupt or truncated"]


def damage_zero(folder, rows):
    path = image_of(folder, rows[3][-1])
    path.write_bytes(b"")
    return ["row 4", str(path), "empty (0 bytes)"]


def damage_category(folder, rows):
    rows[5][-1] = "Tuberculosis-1"
    write_rows(folder, rows)
    return ["row 6", "Tuberculosis-1", "COVID-, Normal-, Viral Pneumonia-"]


DAMAGES = [value for name, value in sorted(globals().items()) if name.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_bad_input_is_named_with_row_and_file(broken, tmp_path, make_params, damage):
    expected = damage(broken, rows_of(broken))
    problems = check(broken, make_params().landmarks)
    assert len(problems) == 1
    for part in expected:
        assert part in problems[0]
    out = tmp_path / "out"
    with pytest.raises(InputProblemsError):
        prepare(broken, out, make_params(SMALL).landmarks)
    assert not out.exists()
    prepared, skipped = prepare(broken, out, make_params(SMALL | {"landmarks.data.on_error": "skip"}).landmarks)
    assert skipped == problems
    assert len(prepared.table) == (40 if damage is damage_stem_twice else 39)
    write_data_page(tmp_path / "data.html", prepared, skipped)
    assert expected[0] in (tmp_path / "data.html").read_text()


def test_a_table_with_another_number_of_columns_is_one_problem(broken, make_params):
    write_rows(broken, [row[1:] for row in rows_of(broken)])
    (problem,) = check(broken, make_params().landmarks)
    assert "31 columns, expected 32" in problem
    assert "is the first one, the row number, missing?" in problem


def test_all_problems_are_listed_at_once(broken, make_params):
    rows = rows_of(broken)
    damage_zero(broken, rows)
    damage_number(broken, rows)
    damage_missing(broken, rows)
    assert len(check(broken, make_params().landmarks)) == 3


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("name", ["Normal-Zoë", "COVID-Łódź 2", "Viral Pneumonia-Ångström"])
def test_accents_of_another_file_system(broken, make_params, form, name):
    rows, other = rows_of(broken), {"NFC": "NFD", "NFD": "NFC"}[form]
    image = image_of(broken, rows[3][-1])
    image.rename(image.with_stem(unicodedata.normalize(form, name)))
    rows[3][-1] = unicodedata.normalize(other, name)
    write_rows(broken, rows)
    assert not check(broken, make_params(SMALL).landmarks)


@pytest.mark.parametrize("missing", ["annotations.csv", "."])
def test_missing_folder_or_table(tmp_path, missing, make_params):
    folder = tmp_path / "nothing"
    if missing != ".":
        folder.mkdir()
    assert len(check(folder, make_params().landmarks)) == 1
    assert "annotations.csv" in check(folder, make_params().landmarks)[0]


def test_category_seen_once_under_a_stratified_split(broken, tmp_path, make_params):
    rows = rows_of(broken)
    viral = [row for row in rows if row[-1].startswith("Viral")]
    write_rows(broken, [row for row in rows if row not in viral[1:]])
    with pytest.raises(InputError, match="'Viral Pneumonia' has 1 image"):
        prepare(broken, tmp_path / "out", make_params(SMALL | {"landmarks.data.split": "stratified"}).landmarks)


def test_prepare_is_reproducible_and_keeps_near_duplicates_together(raw, tmp_path, make_params):
    params = make_params(SMALL).landmarks
    one, _ = prepare(raw, tmp_path / "one", params)
    other, _ = prepare(raw, tmp_path / "other", params)
    assert one.images.shape == (40, 32, 32)
    for name in ("images.npy", "cases.csv", "split.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    assert (one.table.groupby("group")["split"].nunique() == 1).all()
    np.testing.assert_array_equal(one.points, other.points)


def test_hand_made_split_is_used_unless_it_leaks(raw, tmp_path, make_params):
    rows = rows_of(raw)
    shutil.copytree(raw, tmp_path / "raw")
    first, second = (image_of(tmp_path / "raw", rows[k][-1]) for k in (0, 1))
    parts = ["train"] * 20 + ["valid"] * 10 + ["test"] * 10
    table = pd.DataFrame({"stem": [row[-1] for row in rows], "split": parts})
    table.to_csv(tmp_path / "mine.csv", index=False)
    changes = SMALL | {"landmarks.data.split": str(tmp_path / "mine.csv"), "landmarks.data.near_duplicate_distance": 0}
    prepared, _ = prepare(tmp_path / "raw", tmp_path / "out", make_params(changes).landmarks)
    assert list(prepared.table["split"]) == parts
    shutil.copy(first, second)  # the same image under two names, one in train and one in valid
    parts[1] = "valid"
    table.assign(split=parts).to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(InputError) as caught:
        prepare(tmp_path / "raw", tmp_path / "out", make_params(changes).landmarks)
    assert first.stem in str(caught.value)
    assert second.stem in str(caught.value)


def test_formats_give_the_same_grey_image(tmp_path):
    """8 and 16 bit, grey, RGB and RGBA PNG give the same values."""
    from quintet.imaging.pictures import read_grey

    grey = np.random.default_rng(0).integers(0, 256, (40, 30)).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "l.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "i16.png")
    Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "rgb.png")
    Image.fromarray(np.stack([grey, grey, grey, np.full_like(grey, 255)], -1)).save(tmp_path / "rgba.png")
    Image.fromarray((grey * 16.0).astype(np.uint16)).save(tmp_path / "i12.png")  # 12 bits in 16
    for name in ("l", "i16", "i12", "rgb", "rgba"):
        np.testing.assert_allclose(read_grey(tmp_path / f"{name}.png"), grey / 255, atol=0.005)


@pytest.mark.parametrize(
    ("channels", "message"),
    [((230, 120, 180, 255), "a coloured picture, expected an X-ray"), ((90, 90, 90, 0), "every pixel is transparent")],
)
def test_pictures_that_are_no_xray_are_refused(tmp_path, channels, message):
    from quintet.imaging.pictures import read_grey

    light = np.random.default_rng(0).integers(100, 256, (40, 30, 1)) / 255
    Image.fromarray((light * [*channels[:3], 0] + [0, 0, 0, channels[3]]).astype(np.uint8)).save(tmp_path / "x.png")
    with pytest.raises(InputError, match=message):
        read_grey(tmp_path / "x.png")


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_is_read_and_monochrome1_inverted(tmp_path, photometric):
    from quintet.imaging.pictures import read_grey

    pixels = np.arange(64 * 48, dtype=np.uint16).reshape(64, 48)
    path = tmp_path / "x.dcm"
    write_dicom(path, pixels, photometric)
    grey = read_grey(path)
    expected = pixels / pixels.max()
    np.testing.assert_allclose(grey, 1 - expected if photometric == "MONOCHROME1" else expected, atol=0.001)


def write_dicom(path, pixels, photometric):
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.PatientName = "MARKED^PERSON"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 16, 16, 15
    dataset.PixelRepresentation, dataset.PhotometricInterpretation = 0, photometric
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path, enforce_file_format=True)


def test_label_grid_is_found():
    rng = np.random.default_rng(0)
    positions = rng.integers(0, 65, (50, 15, 2))
    sides = np.full((50, 15, 2), 299.0)
    assert label_grid(np.round(positions * 299 / 64), sides) == 64
    assert label_grid(rng.integers(0, 299, (50, 15, 2)).astype(float), sides) is None


def test_the_page_names_the_grid_of_rounded_labels(broken, tmp_path, make_params):
    rows = rows_of(broken)
    side = Image.open(image_of(broken, rows[0][-1])).width
    rounded = [str(round(round(float(cell) * 64 / side) * side / 64)) for row in rows for cell in row[1:-1]]
    write_rows(broken, [[row[0], *rounded[30 * n : 30 * n + 30], row[-1]] for n, row in enumerate(rows)])
    params = make_params(SMALL).landmarks
    write_data_page(tmp_path / "data.html", *prepare(broken, tmp_path / "out", params))
    assert "rounding of the labels to a grid of 64 x 64" in (tmp_path / "data.html").read_text()


def test_real_folder_has_no_problems_and_labels_on_the_references_grid(real_landmarks):
    rows, problems = read_annotations(real_landmarks)
    assert problems == []
    assert len(rows) == 813
    points = np.stack([row.points_px for row in rows])
    assert label_grid(points, np.full_like(points, 299.0)) == 64


def test_check_reports_the_problems_of_the_split(raw, tmp_path, make_params):
    path = tmp_path / "split.csv"
    path.write_text("stem,split\nnobody,train\n")
    params = make_params({"landmarks.data.split": str(path)}).landmarks
    with pytest.raises(InputError) as caught:
        prepare(raw, tmp_path / "out", params)
    assert check(raw, make_params().landmarks) == []
    problems = check(raw, params)
    assert problems
    assert all(problem in str(caught.value) for problem in problems)
