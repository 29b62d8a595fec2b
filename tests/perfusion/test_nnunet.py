"""Every kind of bad input in a raw folder: named with its file, and nothing half-written."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from quintet.errors import InputError
from quintet.perfusion.data.prepare import check, prepare
from tests.perfusion.raw_files import change, image_path, label_path, set_value


def damage_missing_channel(raw):
    image_path(raw, channel=1).unlink()


def damage_extra_channel(raw):
    shutil.copy(image_path(raw), image_path(raw, channel=2))


def damage_label_without_image(raw):
    shutil.copy(label_path(raw), label_path(raw, "PerfTerr099-v1"))


def damage_image_without_label(raw):
    label_path(raw).unlink()


def damage_shape(raw):
    change(image_path(raw, channel=1), lambda a: a[:-1])


def damage_label_shape(raw):
    change(label_path(raw), lambda a: a[:, :-1])


def damage_affine(raw):
    change(image_path(raw, channel=1), None, affine=np.diag([3.0, 3, 6, 1]))


def damage_label_affine(raw):
    change(label_path(raw), None, affine=np.diag([3.0, 3, 6, 1]))


def damage_nan(raw):
    change(image_path(raw), set_value(np.nan))


def damage_infinite(raw):
    change(image_path(raw), set_value(np.inf))


def damage_zero_channel(raw):
    change(image_path(raw, channel=1), lambda a: a * 0)


def damage_empty_label(raw):
    change(label_path(raw), lambda a: a * 0)


def damage_label_value(raw):
    change(label_path(raw), set_value(7))


def damage_truncated(raw):
    path = image_path(raw)
    path.write_bytes(path.read_bytes()[:-100])


def damage_2d(raw):
    for path in (image_path(raw), image_path(raw, channel=1), label_path(raw)):
        change(path, lambda a: a[..., 7])


def damage_twice(raw):
    nib.save(nib.load(image_path(raw)), str(image_path(raw)).removesuffix(".gz"))


def damage_label_twice(raw):
    nib.save(nib.load(label_path(raw)), str(label_path(raw)).removesuffix(".gz"))


def damage_name(raw):
    image_path(raw).rename(raw / "imagesTr" / "PerfTerr002-v1.nii.gz")


def damage_label_names(raw):
    for path in (raw / "labelsTr").iterdir():
        path.rename(path.with_name(path.name.replace(".nii", "_0000.nii")))


def damage_orientation(raw):
    path = image_path(raw, channel=1)
    image = nib.load(path)
    nib.save(image.as_reoriented([[0, -1], [1, -1], [2, 1]]), path)


DAMAGES = {
    damage_label_names: ("a label has no channel number; rename it to PerfTerr00", "others)"),
    damage_orientation: ("PerfTerr002-v1_0001", "its axes run", "those of PerfTerr002-v1_0000.nii.gz"),
    damage_missing_channel: ("PerfTerr002-v1_0001", "missing"),
    damage_extra_channel: ("PerfTerr002-v1_0002", "too many"),
    damage_label_without_image: ("PerfTerr099-v1", "without images"),
    damage_image_without_label: ("PerfTerr002-v1", "no label"),
    damage_shape: ("PerfTerr002-v1_0001", "shape"),
    damage_label_shape: ("labelsTr/PerfTerr002-v1", "shape"),
    damage_affine: ("PerfTerr002-v1_0001", "affine"),
    damage_label_affine: ("labelsTr/PerfTerr002-v1", "affine"),
    damage_nan: ("PerfTerr002-v1_0000", "NaN or infinite"),
    damage_infinite: ("PerfTerr002-v1_0000", "NaN or infinite"),
    damage_zero_channel: ("PerfTerr002-v1_0001", "all voxels are 0"),
    damage_empty_label: ("labelsTr/PerfTerr002-v1", "empty"),
    damage_label_value: ("labelsTr/PerfTerr002-v1", "7"),
    damage_truncated: ("PerfTerr002-v1_0000", "truncated"),
    damage_2d: ("PerfTerr002-v1_0000", "3 axes"),
    damage_twice: ("PerfTerr002-v1_0000.nii and PerfTerr002-v1_0000.nii.gz", "twice"),
    damage_label_twice: ("PerfTerr002-v1.nii and PerfTerr002-v1.nii.gz", "twice"),
    damage_name: ("PerfTerr002-v1.nii.gz", "_0000"),
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_bad_input_is_named_and_nothing_is_written(broken, tmp_path, small, damage):
    damage(broken)
    problems = check(broken, small.perfusion)
    assert any(all(part in p for part in DAMAGES[damage]) for p in problems), problems
    assert len(problems) <= 3
    with pytest.raises(InputError) as error:
        prepare(broken, tmp_path / "out", small.perfusion)
    assert all(part in str(error.value) for part in DAMAGES[damage])
    assert not list(tmp_path.glob("*out*"))
    assert not list(tmp_path.glob(".*"))


def test_all_problems_are_listed_at_once(broken, small):
    damage_nan(broken)
    change(label_path(broken, "PerfTerr003-v1"), set_value(9))
    image_path(broken, "PerfTerr001-v1", 1).unlink()
    assert len(check(broken, small.perfusion)) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channel_names": {"0": "CBF"}}, "2 to 4 channels"),
        ({"labels": {"background": 0, "left": 1}}, 'one entry "right"'),
        ({"labels": {"background": 0, "left": "a", "right": 2}}, "whole numbers"),
        (None, "missing"),
        ("{", "dataset.json"),
    ],
)
def test_dataset_json_is_checked(broken, small, change, message):
    path = broken / "dataset.json"
    described = json.loads(path.read_text())
    if change is None:
        path.unlink()
    else:
        path.write_text(change if isinstance(change, str) else json.dumps(described | change))
    problems = check(broken, small.perfusion)
    assert len(problems) == 1
    assert message in problems[0]


def test_no_folder_and_no_cases(tmp_path, small):
    assert "no such folder" in check(tmp_path / "nowhere", small.perfusion)[0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"background": 0, "left": [0, 1, 3], "right": [2, 3]}, "positive value of its own"),
        ({"background": 0, "left": [], "right": 2}, "positive value of its own"),
        ({"background": 0, "left": [1, 3], "right": [1, 3]}, "positive value of its own"),
        ({"background": 0, "left": [1, 3], "right": [1, 2, 3]}, "positive value of its own"),
        ({"background": 0, "left": 1, "right": 2, "ignore": 3}, "'ignore' is not left, right, both or background"),
        ([0, 1, 2], "expected"),
    ],
)
def test_labels_that_make_no_sense_are_refused(broken, small, labels, message):
    path = broken / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"labels": labels}))
    problems = check(broken, small.perfusion)
    assert len(problems) == 1
    assert message in problems[0]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("RICA", "LICA"), "channel 0 must be the left"),
        (("right ICA", "left ICA"), "channel 0 must be the left"),
        (("T1w", "LICA", "RICA"), "must be the left and the right artery's map, got 'T1w'"),
        (("M0", "LICA", "RICA"), "must be the left and the right artery's map, got 'M0'"),
        (("LICA", "FLAIR", "RICA"), "must be the left and the right artery's map, got 'FLAIR'"),
    ],
)
def test_channels_in_another_order_are_refused(broken, small, names, message):
    path = broken / "dataset.json"
    names = {str(number): name for number, name in enumerate(names)}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"channel_names": names}))
    assert message in check(broken, small.perfusion)[0]


def save_as(path, array, *, sform=None, qform=None):
    image = nib.Nifti1Image(array, None)
    image.set_sform(sform, 1 if sform is not None else 0)
    image.set_qform(qform, 1 if qform is not None else 0)
    nib.save(image, path)


def test_files_whose_left_and_right_cannot_be_told_are_refused(broken, small):
    path = image_path(broken)
    image = nib.load(path)
    array, affine = np.array(image.dataobj), np.diag([2.6, 2.6, 6.6, 1.0])
    save_as(path, array)
    assert any("neither sform nor qform" in p for p in check(broken, small.perfusion))
    save_as(path, array, sform=affine, qform=affine @ np.diag([-1.0, 1, 1, 1]))
    assert any("disagree about the axes (RAS and LAS)" in p for p in check(broken, small.perfusion))
    save_as(path, array, sform=np.diag([2600.0, 2600, 6600, 1]))
    assert any("another unit" in p for p in check(broken, small.perfusion))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_description_in_another_encoding_is_read(broken, small, encoding):
    path = broken / "dataset.json"
    path.write_text(path.read_text(), encoding=encoding)
    assert not check(broken, small.perfusion)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"channel_names": {"0": "LICA", "1": "RICA"}, "labels": {"background": 0, "left": [[1, 3]], "right": 2}}',
            "lists of them",
        ),
        ('{"channel_names": {"0": "LICA", "1": "RICA"}, "labels": {"background": 0, "left": "1", "right": 2}}', "whole numbers"),
        ('{"channel_names": {"0": "LICA"', "no valid JSON"),
    ],
)
def test_a_description_that_makes_no_sense(broken, small, text, message):
    (broken / "dataset.json").write_text(text)
    (problem,) = check(broken, small.perfusion)
    assert "dataset.json: " in problem
    assert problem.count("dataset.json") == 1
    assert message in problem


def test_a_description_in_latin_1_is_named(broken, small):
    path = broken / "dataset.json"
    path.write_bytes(path.read_bytes().replace(b"{", '{"description": "Stra\u00dfe",'.encode("latin-1"), 1))
    (problem,) = check(broken, small.perfusion)
    assert "is not UTF-8" in problem
    assert problem.count("dataset.json") == 1
