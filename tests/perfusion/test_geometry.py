"""The way into the prepared grid and back, for any orientation, handedness, tilt and shear."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from quintet.errors import InputError
from quintet.imaging.volumes import Grid, read_nifti, write_nifti
from quintet.perfusion.data.geometry import plan_geometry
from quintet.perfusion.data.prepare import resample
from quintet.perfusion.evaluation.scores import dice_score

AFFINE = np.array([[2.6, 0, 0, -40], [0, 2.6, 0, -50], [0, 0, 6.6, -20], [0, 0, 0, 1]])


def territory(spacing, slices=14):
    """A wobbly blob of 14 slices on a grid of the given in-plane spacing, about as large as a territory: canonical `[Z, Y,
    X]`."""
    y, x = np.meshgrid(np.arange(0, 190, spacing), np.arange(0, 150, spacing), indexing="ij")
    masks = []
    for z in range(slices):
        angle = np.arctan2(y - 95, x - 60)
        radius = 42 + 5 * np.sin(3 * angle + z / 3) + 3 * np.cos(5 * angle) - 0.3 * (z - 7) ** 2
        masks.append(((x - 60) / 0.75) ** 2 + (y - 95) ** 2 < (radius * 1.2) ** 2)
    return np.stack(masks)


@pytest.mark.parametrize("spacing", [2.625 * f for f in (0.85, 0.9, 0.95, 1.0, 1.07, 1.15)])
def test_masks_survive_the_round_trip(spacing):
    """Spacing within 15 % of the median: Dice of at least 0.99 there and back."""
    mask = territory(spacing)
    grid = Grid(mask.shape[::-1], np.diag([spacing, spacing, 6.6, 1.0]))
    inside = np.ones_like(mask)
    way = plan_geometry(grid, inside, (2.625, 2.625))
    prepared = way.resample_mask(way.crop(grid.from_canonical(mask)))
    back = way.to_file(prepared.astype(np.float32)) >= 0.5
    assert prepared.shape[1:] == way.size
    assert dice_score(grid.to_canonical(back), mask) >= 0.99


def case(images, grid):
    found = resample(images, grid, (2.6, 2.6), "channel")
    return found.images, found.geometry


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, -1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_storage_order_and_handedness_change_nothing(flips, order):
    """The same head stored along other axes, left-handed ones included, is prepared to the same arrays and comes back in its
    own."""
    rng = np.random.default_rng(0)
    images = rng.normal(30, 10, (2, 20, 24, 5)).astype(np.float32)
    images[:, :3] = 0
    images[..., :2, :] = 0
    grid = Grid((20, 24, 5), AFFINE)
    ornt = np.array([[order[i], flips[i]] for i in range(3)])
    stored = np.stack([apply_orientation(image, ornt) for image in images])
    other = Grid(stored.shape[1:], AFFINE @ inv_ornt_aff(ornt, (20, 24, 5)))
    one, way = case(images, grid)
    two, other_way = case(stored, other)
    np.testing.assert_array_equal(one, two)
    for array, w, source in ((one, way, images), (two, other_way, stored)):
        back = w.to_file(array[:, 0])
        inside = source[0] != 0
        chosen = source[:, (source != 0).any(0)]
        np.testing.assert_allclose(back[inside], ((source[0] - chosen[0].mean()) / chosen[0].std())[inside], rtol=1e-3, atol=1e-3)


def test_oblique_and_sheared_grids_keep_their_spacing_and_come_back():
    turn = np.array([[0.98, -0.17, 0.05], [0.17, 0.98, 0.1], [-0.07, -0.09, 0.99]])
    shear = np.array([[1, 0.2, 0], [0, 1, 0], [0, 0, 1]])
    for steps in (turn, shear):
        affine = AFFINE.copy()
        affine[:3, :3] = steps @ AFFINE[:3, :3]
        grid = Grid((20, 24, 5), affine)
        own = np.linalg.norm(affine[:3, :3], axis=0)
        np.testing.assert_allclose(grid.spacing_mm, own[[2, 1, 0]])
        array = np.random.default_rng(0).random((20, 24, 5)).astype(np.float32)
        np.testing.assert_array_equal(grid.from_canonical(grid.to_canonical(array)), array)


def test_nothing_outside_the_box():
    images = np.zeros((2, 20, 24, 5), np.float32)
    images[:, 5:15, 6:20, 1:4] = np.random.default_rng(0).normal(10, 1, (2, 10, 14, 3))
    array, way = case(images, Grid((20, 24, 5), AFFINE))
    assert array.shape == (3, 2, 14, 10)
    p = way.to_file(np.ones((3, 14, 10), np.float32))
    assert p.sum() == 3 * 14 * 10
    assert (p[5:15, 6:20, 1:4] == 1).all()


def test_nifti_keeps_grid_and_values(tmp_path):
    array = np.random.default_rng(0).random((5, 6, 7, 2)).astype(np.float32)
    write_nifti(tmp_path / "a.nii.gz", array, Grid((5, 6, 7), AFFINE))
    again, grid = read_nifti(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(again, array)
    assert grid.same_as(Grid((5, 6, 7), AFFINE))
    assert nib.load(tmp_path / "a.nii.gz").header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("what", ["missing", "text", "truncated", "2d", "nan", "singular"])
def test_unusable_files_are_named(tmp_path, what):
    path = tmp_path / "case_0000.nii.gz"
    array = np.ones((8, 8) if what == "2d" else (8, 8, 4), np.float32)
    if what == "nan":
        array[2, 2, 2] = np.nan
    write_nifti(path, array, Grid((8, 8, 4), AFFINE))
    if what == "singular":
        header = nib.Nifti1Header()
        header["sform_code"] = 1  # and a matrix of zeros
        nib.save(nib.Nifti1Image(array, None, header), path)
    if what == "missing":
        path.unlink()
    if what == "text":
        path.write_bytes(b"no volume")
    if what == "truncated":
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="case_0000"):
        read_nifti(path)
