"""Cubes around a given point: the same head whatever the orientation, spacing and shape of its file."""

import nibabel as nib
import numpy as np
import pytest

from quintet.imaging.boxes import bounds_mm, sample_cube
from quintet.imaging.volumes import Grid


def head(points_mm):
    """A smooth field without any symmetry at RAS mm `[..., 3]`."""
    x, y, z = np.moveaxis(points_mm, -1, 0)
    return np.exp(-((x / 40) ** 2 + (y / 55) ** 2 + (z / 45) ** 2)) * (
        2 + np.sin(x / 20) + np.cos(y / 25 + 1) + 0.5 * np.sin(z / 15)
    )


def scan(spacing, orientation="RAS"):
    shape = np.round(160 / np.array(spacing)).astype(int)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(shape - 1) / 2 * spacing
    index = np.stack(np.indices(shape), -1)
    array = head(nib.affines.apply_affine(affine, index)).astype(np.float32)
    ras, wanted = nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(orientation)
    to_orientation = nib.orientations.ornt_transform(ras, wanted)
    oriented = nib.orientations.apply_orientation(array, to_orientation)
    return np.ascontiguousarray(oriented), Grid(oriented.shape, affine @ nib.orientations.inv_ornt_aff(to_orientation, shape))


def expected(size, side):
    offset = (np.arange(size) - (size - 1) / 2) * side / size
    z, y, x = np.meshgrid(offset, offset, offset, indexing="ij")
    return head(np.stack([x + 4, y - 3, z + 2], -1))


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PIR", "SRA"])
@pytest.mark.parametrize("spacing", [(4, 4, 4), (3, 3.5, 6), (1.5, 1.5, 5)])
def test_position_and_orientation(spacing, orientation):
    array, grid = scan(spacing, orientation)
    cube = sample_cube(array, grid, np.array([4.0, -3.0, 2.0]), 96.0, 16, fill=0.0)
    assert cube == pytest.approx(expected(16, 96), abs=0.12)
    assert np.abs(cube - expected(16, 96)).mean() < 0.03


def test_outside_the_file_the_cube_is_fill():
    array, grid = scan((4, 4, 4))
    cube = sample_cube(array + 5, grid, np.array([200.0, 0, 0]), 96.0, 8, fill=-7.0)
    assert (cube[:, :, -1] == -7).all()
    assert (sample_cube(array + 5, grid, np.zeros(3), 96.0, 8, fill=-7.0) > 4).all()


def test_the_outer_half_of_the_outermost_voxels_is_inside_the_file():
    """In every orientation: here it is turned by 20 degrees."""
    array, spacing = np.full((40, 40, 8), 5, np.float32), np.array([2.0, 2.0, 10.0])
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.35), -np.sin(0.35)], [np.sin(0.35), np.cos(0.35)]]
    affine = turn @ np.diag([*spacing, 1])
    affine[:3, 3] -= affine[:3, :3] @ ((np.array(array.shape) - 1) / 2)
    cube = sample_cube(array, Grid(array.shape, affine), np.zeros(3), 100.0, 50, fill=-7.0)
    assert set(np.unique(cube)) == {-7.0, 5.0}
    assert (cube == 5).sum() * 2**3 == pytest.approx(80**3, rel=0.02)


def test_voxels_beside_the_last_whole_block_are_inside_the_file():
    """Blocks of 3 voxels leave 2 of 62 and 1 of 61."""
    shape, spacing = (62, 61, 31), np.array([1.0, 1.0, 2.0])
    affine = np.diag([*spacing, 1])
    affine[:3, 3] = -spacing * (np.array(shape) - 1) / 2
    assert (sample_cube(np.full(shape, 5, np.float32), Grid(shape, affine), np.zeros(3), 62.0, 16, fill=-7.0) == 5).all()


def test_fine_voxels_are_averaged():
    """The mean of 64 voxels has an eighth of the noise."""
    rng = np.random.default_rng(0)
    noise, grid = rng.normal(size=(80, 80, 80)).astype(np.float32), Grid((80, 80, 80), np.eye(4))
    assert sample_cube(noise, grid, np.full(3, 39.5), 80.0, 20, fill=0.0).std() == pytest.approx(1 / 8, rel=0.1)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PIR"])
def test_bounds_include_voxel_edges(orientation):
    array, grid = scan((4, 5, 6), orientation)
    low, high = np.array([-10.0, -20, 5]), np.array([21.0, 4, 40])
    points_mm = nib.affines.apply_affine(grid.affine, np.stack(np.indices(array.shape), -1))
    mask = ((points_mm >= low) & (points_mm <= high)).all(-1)
    found = bounds_mm(mask, grid)
    inside = points_mm[mask]
    assert found == pytest.approx(np.stack([inside.min(0) - np.array([2, 2.5, 3]), inside.max(0) + np.array([2, 2.5, 3])]))
