"""The prepared data set: folds, arrays, and what is left out."""

import html
import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from quintet.errors import InputError
from quintet.perfusion.analysis import analyze, write_data_page
from quintet.perfusion.data.nnunet import read_dataset
from quintet.perfusion.data.prepare import check, make_folds, prepare
from quintet.perfusion.data.prepared import centred, load
from quintet.perfusion.evaluation.scores import dice_score
from quintet.perfusion.synthetic import description
from tests.perfusion.conftest import SMALL
from tests.perfusion.raw_files import change, image_path, label_path, set_value


def test_fewer_subjects_than_folds(flow_maps, tmp_path, make_params):
    params = make_params(SMALL | {"perfusion.data.folds": 7})
    assert any("at least 7 subjects, got 6" in p for p in check(flow_maps, params.perfusion))
    with pytest.raises(InputError, match="at least 7 subjects"):
        prepare(flow_maps, tmp_path / "out", params.perfusion)


def test_folds_keep_people_together_and_use_everyone_once(flow_arrays):
    prepared = load(flow_arrays)
    subject = dict(zip(prepared.table["case"], prepared.table["subject"], strict=True))
    seen = []
    for fold in prepared.folds:
        assert not {subject[c] for c in fold["train"]} & {subject[c] for c in fold["val"]}
        assert sorted(fold["train"] + fold["val"]) == sorted(prepared.table["case"])
        seen += fold["val"]
    assert sorted(seen) == sorted(prepared.table["case"])
    assert len(prepared.table) > prepared.table["subject"].nunique()


def test_a_given_split_takes_precedence_and_is_refused_if_it_leaks(broken, tmp_path, small):
    cases = sorted(p.name.removesuffix(".nii.gz") for p in (broken / "labelsTr").iterdir())
    people = sorted({c.split("-")[0] for c in cases})
    folds = [
        {"train": [c for c in cases if c.split("-")[0] not in held], "val": [c for c in cases if c.split("-")[0] in held]}
        for held in (people[:1], people[1:2], people[2:3])
    ]
    (broken / "splits_final.json").write_text(json.dumps(folds))
    prepared = prepare(broken, tmp_path / "out", small.perfusion)[0]
    assert prepared.folds == folds
    twice = next(p for p in people if sum(c.startswith(p) for c in cases) > 1)
    first, *others = (c for c in cases if c.startswith(twice))
    folds[0] = {"train": [c for c in cases if c != first], "val": [first]}
    (broken / "splits_final.json").write_text(json.dumps(folds))
    with pytest.raises(InputError, match=rf"subject {twice} is in train and val: .*{others[0]}"):
        prepare(broken, tmp_path / "leak", small.perfusion)
    assert not (tmp_path / "leak").exists()
    (broken / "splits_final.json").write_text(json.dumps(folds[1:]))
    with pytest.raises(InputError, match="has 2 folds"):
        prepare(broken, tmp_path / "leak", small.perfusion)


def test_prepared_arrays_are_z_scores_in_the_middle_of_their_frame(flow_arrays, flow_maps):
    prepared = load(flow_arrays)
    assert prepared.images.shape[0] == prepared.table["slices"].sum() == len(prepared.sizes())
    assert prepared.images.shape[2] % 2 == prepared.images.shape[3] % 2 == 0
    for case in range(len(prepared.table)):
        images, masks = (np.asarray(a[prepared.slices(case)]) for a in (prepared.images, prepared.masks))
        own = centred(images, prepared.geometry[case].size)
        assert np.abs(images).sum() == pytest.approx(np.abs(own).sum(), rel=1e-5)
        inside = (own != 0).any(1)
        chosen = np.moveaxis(own, 1, -1)[inside]
        np.testing.assert_allclose(chosen.mean(0), 0, atol=0.06)
        resampled = prepared.geometry[case].grid.spacing_mm[2] != pytest.approx(2.625)  # averages noise away
        np.testing.assert_allclose(chosen.std(0), 0.85 if resampled else 1, atol=0.15 if resampled else 1e-3)
        label = nib.load(flow_maps / "labelsTr" / f"{prepared.table['case'][case]}.nii.gz").get_fdata()
        np.testing.assert_array_equal(prepared.label_masks(case)[0], np.isin(label, [1, 3]))
        np.testing.assert_array_equal(prepared.label_masks(case)[1], np.isin(label, [2, 3]))
        for side in range(2):
            back = prepared.geometry[case].to_file(centred(masks, prepared.geometry[case].size)[:, side].astype(np.float32))
            assert dice_score(back >= 0.5, prepared.label_masks(case)[side]) > 0.98


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
    prepare(broken, tmp_path / "out", small.perfusion)
    for name in ("images.npy", "masks.npy", "truth.npy", "cases.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (flow_arrays / name).read_bytes()


def test_an_absent_file_is_one_problem_and_not_one_of_each_fold(broken, small):
    cases = sorted(p.name.removesuffix(".nii.gz") for p in (broken / "labelsTr").iterdir())
    people = sorted({c.split("-")[0] for c in cases})
    folds = [
        {"train": [c for c in cases if c.split("-")[0] != held], "val": [c for c in cases if c.split("-")[0] == held]}
        for held in people[: small.perfusion.data.folds]
    ]
    (broken / "splits_final.json").write_text(json.dumps(folds))
    next((broken / "imagesTr").glob(f"{cases[0]}_0001*")).unlink()
    (problem,) = check(broken, small.perfusion)
    assert f"{cases[0]}_0001" in problem
    (broken / "splits_final.json").write_text(json.dumps([fold | {"train": [*fold["train"], "nobody"]} for fold in folds]))
    assert "splits_final.json: fold 0: nobody is not a case" in "\n".join(check(broken, small.perfusion))


def test_a_third_channel_and_cases_without_visits(broken, tmp_path, small):
    path = broken / "dataset.json"
    described = json.loads(path.read_text())
    two = prepare(broken, tmp_path / "two", small.perfusion)[0]
    path.write_text(json.dumps(described | {"channel_names": {"0": "LICA", "1": "RICA", "2": "T1w"}}))
    for image in sorted((broken / "imagesTr").glob("*_0000*")):
        shutil.copy(image, str(image).replace("_0000", "_0002"))
        change(image.with_name(image.name.replace("_0000", "_0002")), lambda a: 100 - a)
    for folder in ("imagesTr", "labelsTr"):
        for file in sorted((broken / folder).glob("PerfTerr004-v1*")):
            file.rename(str(file).replace("PerfTerr004-v1", "alone"))
    prepared = prepare(broken, tmp_path / "out", small.perfusion)[0]
    assert prepared.images.shape[1] == 3
    assert prepared.brain.sum() == pytest.approx(two.brain.sum(), rel=0.02)
    assert prepared.brain.sum() < 0.8 * (prepared.images[:, 2] != 0).sum()  # not the head that T1w shows
    assert set(prepared.table.loc[prepared.table["case"] == "alone", "subject"]) == {"alone"}


def test_scaled_labels_trailing_axes_and_upper_case_names_are_read(broken, flow_arrays, tmp_path, small):
    path = label_path(broken)
    image = nib.load(path)
    scaled = nib.Nifti1Image(np.array(image.dataobj).astype(np.float32) * 1.0000001, image.affine)
    nib.save(scaled, path)
    path = image_path(broken)
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.array(image.dataobj)[..., None, None], image.affine), path)
    path.rename(str(path).replace(".nii.gz", ".NII.GZ"))
    prepare(broken, tmp_path / "out", small.perfusion)
    for name in ("images.npy", "masks.npy", "truth.npy", "cases.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (flow_arrays / name).read_bytes()


def test_a_person_called_na_and_a_label_beside_the_brain(broken, tmp_path, small):
    for file in sorted(broken.glob("*/PerfTerr004-v1*")):
        file.rename(str(file).replace("PerfTerr004-v1", "NA-v1"))
    prepared = prepare(broken, tmp_path / "out", small.perfusion)[0]
    assert "NA" in set(prepared.table["subject"])

    def corner(array):
        array = array * 0
        array[0, 0, 0] = 1
        return array

    change(label_path(broken), corner)
    assert any("no labelled voxel" in p and "PerfTerr002-v1" in p for p in check(broken, small.perfusion))


def test_splits_that_count_a_case_twice_are_refused(broken, tmp_path, small):
    cases = sorted(p.name.removesuffix(".nii.gz") for p in (broken / "labelsTr").iterdir())
    held = [c for c in cases if c.startswith("PerfTerr001")]
    fold = {"train": [c for c in cases if c not in held], "val": held}
    (broken / "splits_final.json").write_text(json.dumps([fold, fold, fold | {"train": [*fold["train"], cases[-1]]}]))
    with pytest.raises(InputError, match="is held out in 3 folds") as error:
        prepare(broken, tmp_path / "out", small.perfusion)
    assert f"{cases[-1]} is listed twice in train" in str(error.value)
    for text in ("[]", "[[1]]", '[{"train": [1], "val": ["a"]}]', "{"):
        (broken / "splits_final.json").write_text(text)
        with pytest.raises(InputError, match=r"splits_final\.json: expected a list"):
            prepare(broken, tmp_path / "out", small.perfusion)


def test_results_never_replace_the_raw_data(broken, small):
    for out in (broken, broken.parent, broken / "prepared"):
        with pytest.raises(InputError, match="would be replaced"):
            prepare(broken, out, small.perfusion)
    assert (broken / "dataset.json").is_file()


def damage_two_cases(raw):
    """A voxel that is not a number in one case, a missing channel in another."""
    change(image_path(raw, "PerfTerr002-v1"), set_value(np.nan))
    image_path(raw, "PerfTerr003-v1", 1).unlink()


def test_skip_leaves_out_broken_cases_and_prepares_the_rest(broken, tmp_path, small):
    """As if the broken cases had never been there; the data page lists them."""
    clean = shutil.copytree(broken, tmp_path / "clean")
    for file in [*clean.glob("*/PerfTerr002-v1*"), *clean.glob("*/PerfTerr003-v1*")]:
        file.unlink()
    expected, _ = prepare(clean, tmp_path / "expected", small.perfusion)
    damage_two_cases(broken)
    params = skipping(small.perfusion)
    prepared, skipped = prepare(broken, tmp_path / "out", params)
    assert len(skipped) == 2
    assert all(any(name in problem for problem in skipped) for name in ("PerfTerr002-v1", "PerfTerr003-v1"))
    assert sorted(prepared.table["case"]) == sorted(expected.table["case"])
    for file in (tmp_path / "expected").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    write_data_page(tmp_path / "page.html", prepared, skipped, [])
    page = (tmp_path / "page.html").read_text()
    assert "2 skipped" in page
    assert all(html.escape(problem) in page for problem in skipped)


def test_skipped_cases_leave_the_folds_of_a_file_too(broken, tmp_path, small):
    names = sorted(path.name.removesuffix(".nii.gz") for path in (broken / "labelsTr").iterdir())
    subject = [name.split("-")[0] for name in names]
    people, count = sorted(set(subject)), small.perfusion.data.folds
    folds = [
        {
            "train": [n for n, s in zip(names, subject, strict=True) if people.index(s) % count != k],
            "val": [n for n, s in zip(names, subject, strict=True) if people.index(s) % count == k],
        }
        for k in range(count)
    ]
    (broken / "splits_final.json").write_text(json.dumps(folds))
    damage_two_cases(broken)
    prepared, skipped = prepare(broken, tmp_path / "out", skipping(small.perfusion))
    assert len(skipped) == 2
    left = set(names) - {"PerfTerr002-v1", "PerfTerr003-v1"}
    assert set(prepared.table["case"]) == left
    written = json.loads((tmp_path / "out" / "splits_final.json").read_text())
    assert all(set(fold["train"]) | set(fold["val"]) == left for fold in written)
    folds[0]["train"].append("nobody")
    (broken / "splits_final.json").write_text(json.dumps(folds))
    with pytest.raises(InputError, match="fold 0: nobody is not a case"):
        prepare(broken, tmp_path / "again", skipping(small.perfusion))


def test_raise_lists_all_broken_cases_and_analyze_describes_the_rest(broken, tmp_path, small):
    damage_two_cases(broken)
    with pytest.raises(InputError, match=r"perfusion\.data\.on_error=skip would leave these cases out") as error:
        prepare(broken, tmp_path / "out", small.perfusion)
    assert all(name in str(error.value) for name in ("PerfTerr002-v1", "PerfTerr003-v1"))
    assert not (tmp_path / "out").exists()
    analyze(broken, tmp_path / "page.html", small.perfusion)
    assert "2 skipped" in (tmp_path / "page.html").read_text()


def test_skip_with_no_usable_case_is_an_error(broken, tmp_path, small):
    for file in sorted((broken / "labelsTr").iterdir()):
        change(file, lambda a: a * 0)
    with pytest.raises(InputError, match="the label is empty"):
        prepare(broken, tmp_path / "out", skipping(small.perfusion))
    assert not (tmp_path / "out").exists()


def skipping(params):
    return params.model_copy(update={"data": params.data.model_copy(update={"on_error": "skip"})})


SCHEMES = [
    "sub-{:02d}_ses-{}",
    "P{}_V{}",
    "patient {}-visit{}",
    "ASL.{}_scan-{}",
    "BraTS-GLI-{:05d}-10{}",
    "{:03d}-tp{}",
    "Ö{}_time{}",
]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_visits_of_one_person_are_in_one_fold(tmp_path, small, scheme, capsys):
    """Names alone are read."""
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    (tmp_path / "dataset.json").write_text(json.dumps(description(12)))
    for number in range(12):
        name = scheme.format(number // 2 + 1, number % 2 + 1)
        for path in (f"labelsTr/{name}", f"imagesTr/{name}_0000", f"imagesTr/{name}_0001"):
            (tmp_path / f"{path}.nii.gz").write_bytes(path.encode())
    dataset, problems = read_dataset(tmp_path, small.perfusion.data.subject_pattern)
    assert not problems
    assert len({case.subject for case in dataset.cases}) == 6
    for fold in make_folds(tmp_path, dataset.cases, small.perfusion.data):
        people = [{case.subject for case in dataset.cases if case.name in fold[part]} for part in ("train", "val")]
        assert not people[0] & people[1]
        assert people[1]
