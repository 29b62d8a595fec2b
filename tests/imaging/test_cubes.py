"""Cubes equal a plain evaluation of the same interpolation and do not depend on how the scan was stored."""

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from quintet.ct.synthetic import POSITIONS, write_series
from quintet.errors import InputError
from quintet.imaging.cubes import Volume, to_cube
from quintet.imaging.dicom import read_series
from quintet.imaging.volumes import Grid

WINDOW = (-1000.0, 400.0)


def blobs(points_mm):
    """A smooth body at RAS mm `[..., 3]`, without any symmetry, air outside."""
    x, y, z = np.moveaxis(np.asarray(points_mm, float), -1, 0)
    body = 900 * np.exp(-(((x / 60) ** 2 + (y / 45) ** 2 + (z / 50) ** 2) ** 2))
    return -1000 + body + 300 * np.exp(-(((x - 25) / 18) ** 2 + ((y + 10) / 14) ** 2 + ((z - 20) / 20) ** 2))


def scan(shape, affine):
    """`blobs` on a grid `[X, Y, Z]`."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return Volume(blobs(index @ affine[:3, :3].T + affine[:3, 3]).astype(np.float32), Grid(shape, affine))


def centred(shape, directions_mm):
    """The affine of a grid centred at the origin; the columns of `directions_mm` are its steps."""
    affine = np.eye(4)
    affine[:3, :3] = directions_mm
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


CLEAN = scan((80, 80, 64), centred((80, 80, 64), np.diag([2.5, 2.5, 3.0])))


def mean_difference(first, second):
    """In grey levels."""
    return np.abs(first.astype(int) - second.astype(int)).mean()


def test_equals_linear_interpolation_at_every_voxel():
    """Cube voxels of 2 mm from scan voxels of 2.5 x 2.5 x 3 mm, so nothing is averaged; compared with SciPy."""
    size, target = 100, 2.0
    cube = to_cube(CLEAN, size, WINDOW)
    offset = (np.arange(size) - (size - 1) / 2) * target
    z, y, x = np.meshgrid(offset, offset, offset, indexing="ij")
    index = [v / step + (n - 1) / 2 for v, step, n in zip((x, y, z), (2.5, 2.5, 3.0), CLEAN.grid.shape, strict=True)]
    outside = np.any([(i < -0.5 - 1e-6) | (i > n - 0.5 + 1e-6) for i, n in zip(index, CLEAN.grid.shape, strict=True)], axis=0)
    clipped = [np.clip(i, 0, n - 1) for i, n in zip(index, CLEAN.grid.shape, strict=True)]
    hu = map_coordinates(CLEAN.array.astype(float), clipped, order=1)
    expected = np.where(outside, 0, np.clip((hu + 1000) / 1400, 0, 1) * 255)
    assert np.abs(cube - expected).max() <= 0.5 + 1e-2
    assert outside.any()


def test_a_box_is_the_middle_of_a_larger_cube_and_outside_the_scan_it_is_empty():
    """At the same voxel size: a cube of half the side is the middle of the whole, one of twice the side has it in its middle."""
    side_mm = float((np.array(CLEAN.grid.shape) * (2.5, 2.5, 3.0)).max())
    whole = to_cube(CLEAN, 80, WINDOW)
    assert (to_cube(CLEAN, 40, WINDOW, box_mm=side_mm / 2) == whole[20:60, 20:60, 20:60]).all()
    larger = to_cube(CLEAN, 160, WINDOW, box_mm=2 * side_mm)
    assert (larger[40:120, 40:120, 40:120] == whole).all()
    larger[40:120, 40:120, 40:120] = 0
    assert not larger.any()


def test_blocks_are_averaged_where_the_scan_is_finer():
    """Four voxels of the scan along each axis for one voxel of the cube: means of whole blocks."""
    rng = np.random.default_rng(0)
    array = rng.uniform(-900, 300, (32, 32, 32)).astype(np.float32)
    cube = to_cube(Volume(array, Grid((32, 32, 32), np.diag([1.0, 1, 1, 1]))), 8, WINDOW)
    expected = array.reshape(8, 4, 8, 4, 8, 4).mean((1, 3, 5)).transpose(2, 1, 0)
    assert np.abs(cube - (expected + 1000) / 1400 * 255).max() <= 0.51


def test_axes_of_the_cube_are_superior_anterior_right():
    cube = to_cube(CLEAN, 50, WINDOW).astype(float)
    bright = np.argwhere(cube == cube.max()).mean(0) - 24.5  # the blob at x 25, y -10, z 20 of voxels of 4 mm
    assert bright * 4 == pytest.approx([14, -7, 19], abs=8)
    assert (np.sign(bright) == [1, -1, 1]).all()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(threads):
    assert (to_cube(CLEAN, 40, WINDOW, threads=threads) == to_cube(CLEAN, 40, WINDOW)).all()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (-1, -1, -1)])
def test_any_order_and_direction_of_the_files_axes_gives_the_same_cube(order, signs):
    steps = np.zeros((3, 3))
    spacing, counts = (2.5, 2.5, 3.0), np.array((80, 80, 64))
    for axis, (to, sign) in enumerate(zip(order, signs, strict=True)):
        steps[to, axis] = sign * spacing[to]
    shape = tuple(int(counts[to]) for to in order)
    reordered, original = to_cube(scan(shape, centred(shape, steps)), 64, WINDOW), to_cube(CLEAN, 64, WINDOW)
    assert np.abs(reordered.astype(int) - original).max() <= (order != (0, 1, 2))  # another order of interpolation: rounding
    assert mean_difference(reordered, original) < 1e-4


@pytest.mark.parametrize("angles", [(12, 0, 0), (-8, 15, 5)])
def test_an_oblique_scan_gives_the_volume_of_the_straight_one(angles):
    steps = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag([2.5, 2.5, 3.0])
    turned = scan((80, 80, 64), centred((80, 80, 64), steps))
    oblique, straight = to_cube(turned, 64, WINDOW), to_cube(CLEAN, 64, WINDOW)
    assert mean_difference(oblique, straight) < 1
    core = (slice(14, 50),) * 3  # inside both scans
    assert np.abs(oblique[core].astype(int) - straight[core]).max() <= 6


@pytest.mark.parametrize("angle", [0, 3])
def test_noise_is_averaged_whatever_the_direction_of_the_scan(angle):
    """Blocks of four voxels along each axis."""
    rng, shape = np.random.default_rng(0), (96, 96, 96)
    steps = 0.75 * Rotation.from_euler("z", angle, degrees=True).as_matrix()
    noise = Volume(rng.normal(-300, 80, shape).astype(np.float32), Grid(shape, centred(shape, steps)))
    grey = to_cube(noise, 24, WINDOW)[6:18, 6:18, 6:18].astype(float)
    assert grey.std() * (WINDOW[1] - WINDOW[0]) / 255 < 80 / 64**0.5 * 1.2


def test_another_spacing_gives_the_same_volume():
    finer = scan((100, 160, 128), centred((100, 160, 128), np.diag([2.0, 1.25, 1.5])))
    assert mean_difference(to_cube(finer, 64, WINDOW), to_cube(CLEAN, 64, WINDOW)) < 1


@pytest.mark.parametrize("position", POSITIONS)
def test_dicom_of_every_patient_position_equals_the_array(tmp_path, position):
    """With shuffled file names and instance numbers."""
    hu = CLEAN.array.transpose(2, 1, 0).round().astype(np.int16)
    write_series(tmp_path / "s", hu, (3.0, 2.5, 2.5), position=position, rng=np.random.default_rng(1))
    expected = to_cube(Volume(hu.transpose(2, 1, 0).astype(np.float32), CLEAN.grid), 64, WINDOW)
    assert (to_cube(read_series(tmp_path / "s"), 64, WINDOW) == expected).all()


def test_an_oblique_dicom_series(tmp_path):
    import pydicom

    hu = CLEAN.array.transpose(2, 1, 0).round().astype(np.int16)
    write_series(tmp_path / "s", hu, (3.0, 2.5, 2.5))
    turn = Rotation.from_euler("x", 10, degrees=True).as_matrix()
    steps = np.diag([-1.0, -1, 1]) @ turn @ np.diag([-2.5, -2.5, 3.0])  # LPS
    corner = -steps @ ((np.array([80, 80, 64]) - 1) / 2)
    body = scan((80, 80, 64), np.vstack([np.c_[np.diag([-1, -1, 1]) @ steps, np.diag([-1, -1, 1]) @ corner], [0, 0, 0, 1]]))
    for path in (tmp_path / "s").iterdir():
        dataset = pydicom.dcmread(path)
        k = int(dataset.InstanceNumber) - 1
        dataset.ImageOrientationPatient = [*(steps[:, 0] / 2.5), *(steps[:, 1] / 2.5)]
        dataset.ImagePositionPatient = list((corner + k * steps[:, 2]).round(5))
        dataset.PixelData = body.array[:, :, k].T.round().astype("<i2").tobytes()
        dataset.save_as(path)
    assert mean_difference(to_cube(read_series(tmp_path / "s"), 64, WINDOW), to_cube(CLEAN, 64, WINDOW)) < 1


def test_constant_and_broken_volumes_are_refused():
    grid = Grid((8, 8, 8), np.eye(4))
    with pytest.raises(InputError, match=r"every voxel is 7 HU"):
        to_cube(Volume(np.full((8, 8, 8), 7, np.float32), grid), 8, WINDOW)
    broken = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    broken[3, 3, 3] = np.nan
    with pytest.raises(InputError, match="NaN"):
        to_cube(Volume(broken, grid), 8, WINDOW)
    with pytest.raises(InputError, match="not a volume"):
        to_cube(Volume(broken[:, :, :1], Grid((8, 8, 1), np.eye(4))), 8, WINDOW)


@pytest.mark.parametrize(("slices", "box_mm"), [(4, 100.0), (3, 150.0), (6, 160.0)])
def test_a_thin_scan_is_in_the_cube_or_named(slices, box_mm):
    """A cube of 16 voxels, some of them thicker than the whole scan of 1 mm slices."""
    array = np.random.default_rng(0).normal(-500, 200, (40, 40, slices)).astype(np.float32)
    scan = Volume(array, Grid(array.shape, np.eye(4)))
    if slices >= box_mm / 16:
        assert to_cube(scan, 16, WINDOW, box_mm=box_mm).max() > 0
    else:
        with pytest.raises(InputError, match=rf"40 x 40 x {slices} mm, fits between two voxels of the cube, .* apart"):
            to_cube(scan, 16, WINDOW, box_mm=box_mm)
