"""Exchanged sides, maps that are not masked, stray voxels and labels of another case raise a doubt; phantoms do not."""

import json

import nibabel as nib
import numpy as np
import pytest

from quintet.errors import InputError
from quintet.imaging.volumes import Grid, read_nifti
from quintet.params import parse
from quintet.perfusion.analysis import analyze
from quintet.perfusion.data.nnunet import read_case, read_dataset
from quintet.perfusion.data.plausibility import image_doubts, label_doubts, side_doubts, size_doubts
from quintet.perfusion.data.prepare import check, prepare

GRIDS = {"RAS": np.diag([3.0, 3, 3, 1]), "LPS": np.diag([-3.0, -3, 3, 1]), "SAL": np.eye(4)[[2, 1, 0, 3]] * [-1, 1, 1, 1] * 3}


def case(affine, seed=0):
    """A round brain, left and right of whose middle the flow of one map is larger, on any grid."""
    rng, shape = np.random.default_rng(seed), (20, 20, 20)
    affine = affine.copy()
    affine[3] = [0, 0, 0, 1]
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    mm = (index - 9.5) @ affine[:3, :3].T
    brain = np.linalg.norm(mm, axis=-1) < 26
    left = brain & (mm[..., 0] < -3)
    right = brain & (mm[..., 0] > 3)
    flows = np.stack([20 + 40 * left, 20 + 40 * right]) * brain + rng.normal(0, 8, (2, *shape)) * brain
    return flows.astype(np.float32), Grid(shape, affine), np.stack([left, right])


@pytest.mark.parametrize("orientation", GRIDS)
def test_a_sound_case_raises_no_doubt(orientation):
    images, grid, label = case(GRIDS[orientation])
    assert image_doubts(images) + label_doubts(images, grid, label) + side_doubts(images, grid) == []


@pytest.mark.parametrize("orientation", GRIDS)
def test_exchanged_sides(orientation):
    images, grid, label = case(GRIDS[orientation])
    (doubt,) = label_doubts(images[::-1], grid, label)
    assert "are the two maps" in doubt
    both = label_doubts(images, grid, label[::-1])
    assert [("exchanged" in both[0]), ("patient's right" in both[1])] == [True, True]
    axis = int(np.flatnonzero(grid.orientation[:, 0] == 0)[0])
    (doubt,) = label_doubts(np.flip(images, axis + 1), grid, np.flip(label, axis + 1))  # the whole case without its affine
    assert "mirrored without its affine" in doubt
    for wrong in (images[::-1], np.flip(images, axis + 1)):  # as seen without a label
        (doubt,) = side_doubts(wrong, grid)
        assert "exchanged, or was the case mirrored" in doubt


@pytest.mark.parametrize(("scale", "doubted"), [(0.3, True), (3, False), (9, True)])
def test_voxel_sizes_that_no_brain_has(scale, doubted):
    images, grid, _ = case(GRIDS["RAS"])  # about 52 mm long
    doubts = size_doubts(images, Grid(grid.shape, grid.affine * [[scale], [scale], [scale], [1]]))
    assert ["is the voxel size right" in doubt for doubt in doubts] == [True] * doubted


@pytest.mark.parametrize("fill", [-1000.0, 0.5, None])
def test_maps_that_are_not_masked(fill):
    images, _, _ = case(GRIDS["RAS"])
    noise = np.random.default_rng(1).normal(0, 4, images.shape)
    (doubt,) = image_doubts(np.where(images == 0, noise if fill is None else fill, images).astype(np.float32))
    assert "mask them" in doubt


@pytest.mark.parametrize("value", [1e5, -1e5, 3e4])
def test_stray_voxels(value):
    images, _, _ = case(GRIDS["RAS"])
    images[1, 10, 10, [9, 10, 11]] = value
    (doubt,) = image_doubts(images)
    assert doubt.startswith("3 voxel(s) of channel 1")


LABELS = {
    "shifted": lambda label: np.roll(label, 8, 2),
    "shifted sideways": lambda label: np.roll(label, 7, 3),
    "half its slices above the brain": lambda label: np.where(np.arange(20) > 9, np.flip(label, 3) | np.roll(label, 9, 3), label),
    "of a larger head": lambda label: label.repeat(2, 1).repeat(2, 2)[:, 10:30, 10:30],
}


@pytest.mark.parametrize("kind", LABELS)
def test_a_label_beside_the_brain(kind):
    images, grid, label = case(GRIDS["RAS"])
    assert any("lie outside the brain" in d for d in label_doubts(images, grid, LABELS[kind](label)))


@pytest.mark.parametrize("orientation", GRIDS)
def test_a_label_that_was_flipped_alone(orientation):
    images, grid, label = case(GRIDS[orientation])
    axis = int(np.flatnonzero(grid.orientation[:, 0] == 0)[0])
    assert label_doubts(images, grid, np.flip(label, axis + 1))


def test_phantoms_raise_no_doubt_and_check_prints_those_of_a_case(broken, values, capsys):
    params = parse(values).perfusion
    dataset, _ = read_dataset(broken, params.data.subject_pattern)
    for one in dataset.cases:
        images, grid, label = read_case(one, dataset)
        assert image_doubts(images) + label_doubts(images, grid, label) == [], one.name
    first, second = dataset.cases[0].images[:2]
    parked = first.with_name("parked.nii.gz")
    for source, target in ((first, parked), (second, first), (parked, second)):
        source.rename(target)
    check(broken, params)
    assert f"warning: {dataset.cases[0].name}: channel 0 minus channel 1" in capsys.readouterr().out


def test_a_structural_image_is_no_flow_map(tmp_path):
    names = {"0": "T1w", "1": "LICA CBF", "2": "RICA CBF"}
    (tmp_path / "dataset.json").write_text(
        json.dumps({"channel_names": names, "labels": {"background": 0, "left": 1, "right": 2}})
    )
    _, problems = read_dataset(tmp_path, r"(?P<subject>.*)")
    assert "got 'T1w'" in problems[0]


def test_a_lost_header_is_not_to_be_resampled(broken, values):
    dataset, _ = read_dataset(broken, parse(values).perfusion.data.subject_pattern)
    one = dataset.cases[0]
    image = nib.load(one.label)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), np.diag([2.0, 2, 2, 1])), one.label)
    with pytest.raises(InputError, match="if only the header was lost, copy the affine"):
        read_case(one, dataset)


def test_every_problem_of_a_case_is_listed(broken, values):
    """Two damaged maps and a label with a foreign value and with fractions: one sentence each."""
    params = parse(values).perfusion
    first, second = read_dataset(broken, params.data.subject_pattern)[0].cases[:2]
    for path in first.images[:2]:
        image = nib.load(path)
        array = np.asarray(image.dataobj, np.float32)
        array[0, 0, 0] = np.nan
        nib.save(nib.Nifti1Image(array, image.affine), path)
    for case_, value, dtype in ((first, 7, np.uint8), (second, 2.01, np.float32)):
        image = nib.load(case_.label)
        array = np.asarray(image.dataobj).astype(dtype)
        nib.save(nib.Nifti1Image(np.where(array > 0, value, array).astype(dtype), image.affine), case_.label)
    problems = check(broken, params)
    assert [
        message in p for message, p in zip(("NaN", "NaN", "7 are not in", "2.01 are not whole numbers"), problems, strict=True)
    ]
    assert len(problems) == 4


def test_the_first_version_of_the_format_is_named(tmp_path):
    description = {"modality": {"0": "CBF"}, "labels": {"0": "background", "1": "left"}}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    assert "version 1 of nnU-Net's format" in read_dataset(tmp_path, r"(?P<subject>.*)")[1][0]


def test_doubts_are_on_the_data_page(broken, small, tmp_path, capsys):
    for path in broken.glob("imagesTr/PerfTerr001*"):
        image = nib.load(path)
        noise = np.random.default_rng(0).normal(1, 0.1, image.shape)
        array = np.asarray(image.dataobj, np.float32)
        nib.save(nib.Nifti1Image(np.where(array == 0, noise, array).astype(np.float32), image.affine), path)
    analyze(broken, tmp_path / "page.html", small.perfusion)
    page = (tmp_path / "page.html").read_text()
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: PerfTerr001")]
    assert printed
    assert f"{len(printed)} doubts" in page
    assert "maps must be 0 outside the brain" in page


def test_a_negated_map_is_doubtful():
    images, _, _ = case(GRIDS["RAS"])
    images[1] *= -1
    (doubt,) = image_doubts(images)
    assert "most voxels of channel 1 are below 0; was the map negated?" in doubt


def test_one_map_twice_and_a_case_saved_anew(broken, small, tmp_path):
    first, second = sorted((broken / "imagesTr").glob("PerfTerr001-v1*"))
    second.write_bytes(first.read_bytes())
    for path in sorted(broken.glob("*/PerfTerr002-v1*")):
        image = nib.load(path)
        other = path.with_name(path.name.replace("002", "003"))
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj, np.float32), image.affine), other)
    problems = check(broken, small.perfusion)
    assert any(f"{first} and {second} hold one image" in p for p in problems)
    assert any("PerfTerr003-v1: an image is one of PerfTerr002-v1, another person, saved anew" in p for p in problems)
    with pytest.raises(InputError, match="saved anew"):
        prepare(broken, tmp_path / "out", small.perfusion)


@pytest.mark.parametrize("scale", [0.5, 1.1])
def test_two_voxel_sizes_in_one_header(broken, scale):
    """Programs differ in which of them they read: volumes would be wrong by scale^3."""
    path = sorted((broken / "imagesTr").iterdir())[0]
    image = nib.load(path)
    changed = nib.Nifti1Image(np.asarray(image.dataobj), None, image.header)
    changed.set_qform(image.affine, code=1)
    changed.set_sform(image.affine @ np.diag([scale, scale, scale, 1]), code=1)
    nib.save(changed, path)
    with pytest.raises(InputError, match="sform and qform disagree about the voxel size"):
        read_nifti(path)
