"""Preparation, folds, and every kind of bad input: named with its file, and nothing half-written."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from quintet.errors import InputError
from quintet.perfusion import data
from quintet.perfusion.evaluation import dice_score
from tests.perfusion.conftest import SMALL


def image_path(raw, case="PerfTerr002-v1", channel=0):
    return raw / "imagesTr" / f"{case}_{channel:04d}.nii.gz"


def label_path(raw, case="PerfTerr002-v1"):
    return raw / "labelsTr" / f"{case}.nii.gz"


def change(path, action, affine=None):
    image = nib.load(path)
    array = np.array(image.dataobj)
    array = action(array) if action else array
    nib.save(nib.Nifti1Image(array, image.affine if affine is None else affine), path)


def set_value(value, share=0.01):
    def action(array):
        array = array.copy()
        array.flat[: max(1, int(array.size * share))] = value
        return array

    return action


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


DAMAGES = {
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


@pytest.fixture
def broken(flow_maps, tmp_path):
    return shutil.copytree(flow_maps, tmp_path / "raw")


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_bad_input_is_named_and_nothing_is_written(broken, tmp_path, small, damage):
    damage(broken)
    problems = data.check(broken, small.perfusion)
    assert any(all(part in p for part in DAMAGES[damage]) for p in problems), problems
    assert len(problems) <= 2
    with pytest.raises(InputError) as error:
        data.prepare(broken, tmp_path / "out", small.perfusion)
    assert all(part in str(error.value) for part in DAMAGES[damage])
    assert not list(tmp_path.glob("*out*"))
    assert not list(tmp_path.glob(".*"))


def test_all_problems_are_listed_at_once(broken, small):
    damage_nan(broken)
    change(label_path(broken, "PerfTerr003-v1"), set_value(9))
    image_path(broken, "PerfTerr001-v1", 1).unlink()
    assert len(data.check(broken, small.perfusion)) == 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"channel_names": {"0": "CBF"}}, "2 to 4 channels"),
        ({"labels": {"background": 0, "left": 1}}, 'one entry "right"'),
        ({"labels": {"background": 0, "left": "a", "right": 2}}, "whole numbers"),
        (None, "missing"),
        ("{", "dataset.json"),
    ],
)
def test_dataset_json_is_checked(broken, small, change, says):
    path = broken / "dataset.json"
    described = json.loads(path.read_text())
    if change is None:
        path.unlink()
    else:
        path.write_text(change if isinstance(change, str) else json.dumps(described | change))
    problems = data.check(broken, small.perfusion)
    assert len(problems) == 1
    assert says in problems[0]


def test_no_folder_and_no_cases(tmp_path, small):
    assert "no such folder" in data.check(tmp_path / "nowhere", small.perfusion)[0]


def test_fewer_subjects_than_folds(flow_maps, tmp_path, make_params):
    params = make_params(SMALL | {"perfusion.folds": 7})
    assert any("at least 7 subjects, got 6" in p for p in data.check(flow_maps, params.perfusion))
    with pytest.raises(InputError, match="at least 7 subjects"):
        data.prepare(flow_maps, tmp_path / "out", params.perfusion)


def test_folds_keep_people_together_and_use_everyone_once(flow_arrays):
    prepared = data.load(flow_arrays)
    subject = dict(zip(prepared.cases["case"], prepared.cases["subject"], strict=True))
    seen = []
    for fold in prepared.folds:
        assert not {subject[c] for c in fold["train"]} & {subject[c] for c in fold["val"]}
        assert sorted(fold["train"] + fold["val"]) == sorted(prepared.cases["case"])
        seen += fold["val"]
    assert sorted(seen) == sorted(prepared.cases["case"])
    assert len(prepared.cases) > prepared.cases["subject"].nunique()


def test_a_given_split_wins_and_is_refused_if_it_leaks(broken, tmp_path, small):
    cases = sorted(p.name.removesuffix(".nii.gz") for p in (broken / "labelsTr").iterdir())
    people = sorted({c.split("-")[0] for c in cases})
    folds = [
        {"train": [c for c in cases if c.split("-")[0] not in held], "val": [c for c in cases if c.split("-")[0] in held]}
        for held in (people[:1], people[1:2], people[2:3])
    ]
    (broken / "splits_final.json").write_text(json.dumps(folds))
    prepared = data.prepare(broken, tmp_path / "out", small.perfusion)
    assert prepared.folds == folds
    twice = next(p for p in people if sum(c.startswith(p) for c in cases) > 1)
    first, *others = (c for c in cases if c.startswith(twice))
    folds[0] = {"train": [c for c in cases if c != first], "val": [first]}
    (broken / "splits_final.json").write_text(json.dumps(folds))
    with pytest.raises(InputError, match=rf"subject {twice} stands on both sides: .*{others[0]}"):
        data.prepare(broken, tmp_path / "leak", small.perfusion)
    assert not (tmp_path / "leak").exists()
    (broken / "splits_final.json").write_text(json.dumps(folds[1:]))
    with pytest.raises(InputError, match="has 2 folds"):
        data.prepare(broken, tmp_path / "leak", small.perfusion)


def test_prepared_arrays_are_z_scores_in_the_middle_of_their_frame(flow_arrays, flow_maps):
    prepared = data.load(flow_arrays)
    assert prepared.images.shape[0] == prepared.cases["slices"].sum() == len(prepared.sizes())
    assert prepared.images.shape[2] % 2 == prepared.images.shape[3] % 2 == 0
    for case in range(len(prepared.cases)):
        images, masks = (np.asarray(a[prepared.slices(case)]) for a in (prepared.images, prepared.masks))
        own = data.centred(images, prepared.geometry[case].size)
        assert np.abs(images).sum() == pytest.approx(np.abs(own).sum(), rel=1e-5)
        inside = (own != 0).any(1)
        chosen = np.moveaxis(own, 1, -1)[inside]
        np.testing.assert_allclose(chosen.mean(0), 0, atol=0.06)
        resampled = prepared.geometry[case].grid.spacing_mm[2] != pytest.approx(2.625)  # averages noise away
        np.testing.assert_allclose(chosen.std(0), 0.85 if resampled else 1, atol=0.15 if resampled else 1e-3)
        label = nib.load(flow_maps / "labelsTr" / f"{prepared.cases['case'][case]}.nii.gz").get_fdata()
        np.testing.assert_array_equal(prepared.true(case)[0], np.isin(label, [1, 3]))
        np.testing.assert_array_equal(prepared.true(case)[1], np.isin(label, [2, 3]))
        for side in range(2):
            back = prepared.geometry[case].to_file(data.centred(masks, prepared.geometry[case].size)[:, side].astype(np.float32))
            assert dice_score(back >= 0.5, prepared.true(case)[side]) > 0.98


@pytest.mark.parametrize("form", ["both", "4d", "uncompressed"])
def test_other_label_forms_give_the_same_arrays(broken, flow_arrays, tmp_path, small, form):
    if form == "both":
        path = broken / "dataset.json"
        described = json.loads(path.read_text())
        path.write_text(json.dumps(described | {"labels": {"background": 0, "LICA": 1, "RICA": 2, "both": 3}}))
    for path in list((broken / "labelsTr").iterdir()):
        if form == "4d":
            change(path, lambda a: np.stack([np.isin(a, [1, 3]), np.isin(a, [2, 3])], -1).astype(np.uint8))
        if form == "uncompressed":
            nib.save(nib.load(path), str(path).removesuffix(".gz"))
            path.unlink()
    data.prepare(broken, tmp_path / "out", small.perfusion)
    for name in ("images.npy", "masks.npy", "truth.npy", "cases.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (flow_arrays / name).read_bytes()


def test_a_third_channel_and_cases_without_visits(broken, tmp_path, small):
    path = broken / "dataset.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps(described | {"channel_names": {"0": "LICA", "1": "RICA", "2": "T1w"}}))
    for image in sorted((broken / "imagesTr").glob("*_0000*")):
        shutil.copy(image, str(image).replace("_0000", "_0002"))
    for folder in ("imagesTr", "labelsTr"):
        for file in sorted((broken / folder).glob("PerfTerr004-v1*")):
            file.rename(str(file).replace("PerfTerr004-v1", "alone"))
    prepared = data.prepare(broken, tmp_path / "out", small.perfusion)
    assert prepared.images.shape[1] == 3
    assert set(prepared.cases.loc[prepared.cases["case"] == "alone", "subject"]) == {"alone"}


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ({"background": 0, "left": [0, 1, 3], "right": [2, 3]}, "positive value of its own"),
        ({"background": 0, "left": [], "right": 2}, "positive value of its own"),
        ({"background": 0, "left": [1, 3], "right": [1, 3]}, "positive value of its own"),
        ({"background": 0, "left": [1, 3], "right": [1, 2, 3]}, "positive value of its own"),
        ({"background": 0, "left": 1, "right": 2, "ignore": 3}, "'ignore' is none of"),
        ([0, 1, 2], "expected"),
    ],
)
def test_labels_that_make_no_sense_are_refused(broken, small, labels, says):
    path = broken / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"labels": labels}))
    problems = data.check(broken, small.perfusion)
    assert len(problems) == 1
    assert says in problems[0]


def test_exchanged_channels_are_refused(broken, small):
    path = broken / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"channel_names": {"0": "RICA", "1": "LICA"}}))
    assert "channel 0 must be the left" in data.check(broken, small.perfusion)[0]


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
    assert any("neither sform nor qform" in p for p in data.check(broken, small.perfusion))
    save_as(path, array, sform=affine, qform=affine @ np.diag([-1.0, 1, 1, 1]))
    assert any("disagree about the axes (RAS and LAS)" in p for p in data.check(broken, small.perfusion))
    save_as(path, array, sform=np.diag([2600.0, 2600, 6600, 1]))
    assert any("another unit" in p for p in data.check(broken, small.perfusion))


def test_scaled_labels_trailing_axes_and_upper_case_names_are_read(broken, flow_arrays, tmp_path, small):
    path = label_path(broken)
    image = nib.load(path)
    scaled = nib.Nifti1Image(np.array(image.dataobj).astype(np.float32) * 1.0000001, image.affine)
    nib.save(scaled, path)
    path = image_path(broken)
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.array(image.dataobj)[..., None, None], image.affine), path)
    path.rename(str(path).replace(".nii.gz", ".NII.GZ"))
    data.prepare(broken, tmp_path / "out", small.perfusion)
    for name in ("images.npy", "masks.npy", "truth.npy", "cases.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (flow_arrays / name).read_bytes()


def test_a_person_called_na_and_a_label_beside_the_brain(broken, tmp_path, small):
    for file in sorted(broken.glob("*/PerfTerr004-v1*")):
        file.rename(str(file).replace("PerfTerr004-v1", "NA-v1"))
    prepared = data.prepare(broken, tmp_path / "out", small.perfusion)
    assert "NA" in set(prepared.cases["subject"])

    def corner(array):
        array = array * 0
        array[0, 0, 0] = 1
        return array

    change(label_path(broken), corner)
    assert any("no labelled voxel" in p and "PerfTerr002-v1" in p for p in data.check(broken, small.perfusion))


def test_splits_that_count_somebody_twice_are_refused(broken, tmp_path, small):
    cases = sorted(p.name.removesuffix(".nii.gz") for p in (broken / "labelsTr").iterdir())
    held = [c for c in cases if c.startswith("PerfTerr001")]
    fold = {"train": [c for c in cases if c not in held], "val": held}
    (broken / "splits_final.json").write_text(json.dumps([fold, fold, fold | {"train": [*fold["train"], cases[-1]]}]))
    with pytest.raises(InputError, match="is held out in 3 folds") as error:
        data.prepare(broken, tmp_path / "out", small.perfusion)
    assert f"{cases[-1]} stands twice in train" in str(error.value)
    for text in ("[]", "[[1]]", '[{"train": [1], "val": ["a"]}]', "{"):
        (broken / "splits_final.json").write_text(text)
        with pytest.raises(InputError, match=r"splits_final\.json: expected a list"):
            data.prepare(broken, tmp_path / "out", small.perfusion)


def test_results_never_replace_the_raw_data(broken, small):
    for out in (broken, broken.parent, broken / "prepared"):
        with pytest.raises(InputError, match=r"lies in the other|would be replaced"):
            data.prepare(broken, out, small.perfusion)
    assert (broken / "dataset.json").is_file()
