"""One good series, and every fault it can have."""

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRBigEndian, JPEG2000Lossless, MRImageStorage, RLELossless

from quintet.ct.synthetic import write_series
from quintet.errors import InputError
from quintet.imaging.dicom import read_series
from tests.conftest import REAL

HU = np.random.default_rng(0).integers(-1000, 400, (6, 12, 10)).astype(np.int16)


@pytest.fixture
def series(tmp_path):
    write_series(tmp_path / "s", HU, (5.0, 2.0, 1.5))
    return tmp_path / "s"


def change(path, **tags):
    dataset = pydicom.dcmread(path)
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.save_as(path)


def nth(folder, n):
    return sorted(folder.iterdir())[n]


def values(series):
    """`[slices, rows, columns]` in HU."""
    planes = []
    for k in range(series.shape[2]):
        stored, slope, intercept = series.plane(k)
        planes.append(stored * slope + intercept)
    return np.stack(planes)


def test_values_and_grid(series):
    found = read_series(series)
    assert found.shape == (10, 12, 6)
    assert found.grid.spacing_mm == pytest.approx((5.0, 2.0, 1.5))
    assert (values(found) == HU[:, ::-1, ::-1]).all()  # columns run to the left, rows to the back


def test_slices_are_ordered_by_position_alone(series):
    expected = values(read_series(series))
    paths = sorted(series.iterdir())
    for number, path in enumerate(paths):
        change(path, InstanceNumber=1 + (number * 5) % 6)
        path.rename(series / f"x{(number * 7) % 11:02d}.ima")
    assert (values(read_series(series)) == expected).all()


def test_each_slice_has_its_own_rescale_tags(series):
    change(nth(series, 2), RescaleSlope=2, RescaleIntercept=-10)
    expected = HU[:, ::-1, ::-1].astype(float)
    expected[2] = expected[2] * 2 - 10
    assert (values(read_series(series)) == expected).all()


@pytest.mark.parametrize("kind", ["rle", "big-endian", "unsigned"])
def test_other_encodings(series, kind):
    for path in series.iterdir():
        dataset, pixels = pydicom.dcmread(path), pydicom.dcmread(path).pixel_array
        if kind == "rle":
            dataset.compress(RLELossless)
        elif kind == "big-endian":
            dataset.PixelData = pixels.astype(">i2").tobytes()
            dataset["PixelData"].VR = "OW"
            dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
            pydicom.dcmwrite(path, dataset, implicit_vr=False, little_endian=False, force_encoding=True)
            continue
        else:
            dataset.PixelData = (pixels + 1024).astype("<u2").tobytes()
            dataset.PixelRepresentation, dataset.RescaleIntercept = 0, -1024
        dataset.save_as(path)
    assert (values(read_series(series)) == HU[:, ::-1, ::-1]).all()


def test_pixels_that_cannot_be_decoded_name_the_syntax(series):
    path = nth(series, 3)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.PixelData = pydicom.encaps.encapsulate([b"nonsense"])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    with pytest.raises(InputError, match=r"JPEG 2000.*cannot be decoded: a decoder is missing") as caught:
        read_series(series).plane(3)
    assert path.name in str(caught.value)


def _second_series(folder):
    for number in range(3):
        change(nth(folder, number), SeriesInstanceUID="1.2.3")


def _truncated(folder):
    path = nth(folder, 1)
    path.write_bytes(path.read_bytes()[:-50])


def _header_cut(folder):
    path = nth(folder, 1)
    path.write_bytes(path.read_bytes()[:200])


FAULTS = {
    "two series": (_second_series, "2 series in one folder (3 file(s) like"),
    "missing slice": (lambda f: nth(f, 2).unlink(), "1 slice(s) missing between"),
    "duplicated slice": (lambda f: (f / "copy.dcm").write_bytes(nth(f, 2).read_bytes()), "have the same position"),
    "uneven": (lambda f: change(nth(f, 5), ImagePositionPatient=[7, 11, 13.6]), "mm apart, the others 5"),
    "shifted": (lambda f: change(nth(f, 3), ImagePositionPatient=[30, 11, 2.5]), "shifted relative to each other"),
    "another spacing": (lambda f: change(nth(f, 1), PixelSpacing=[2, 2]), "PixelSpacing differs"),
    "orientation": (lambda f: change(nth(f, 1), ImageOrientationPatient=[-1, 0, 0, 0, 1, 0]), "ImageOrientationPatient"),
    "another size": (lambda f: change(nth(f, 1), Rows=6), "Rows differs"),
    "no directions": (lambda f: [change(p, ImageOrientationPatient=[1, 0, 0, 1, 0, 0]) for p in f.iterdir()], "two perp"),
    "MR": (lambda f: change(nth(f, 1), Modality="MR", SOPClassUID=MRImageStorage), "modality MR, expected CT"),
    "localiser": (lambda f: change(nth(f, 1), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "a localiser"),
    "no rescale": (
        lambda f: change(nth(f, 1), RescaleSlope=None),
        "missing RescaleSlope; without it values are not in",
    ),
    "no position": (lambda f: change(nth(f, 1), ImagePositionPatient=None), "missing ImagePositionPatient"),
    "multi-frame": (lambda f: change(nth(f, 1), NumberOfFrames=5), "a multi-frame file"),
    "truncated": (_truncated, "truncated, 190 of 240 bytes"),
    "header cut": (_header_cut, "cannot be read"),
    "no DICOM": (lambda f: (f / "readme.txt").write_text("hello"), "not a DICOM file"),
    "empty": (lambda f: [p.unlink() for p in f.iterdir()], "has no files"),
    "too few": (lambda f: [p.unlink() for p in sorted(f.iterdir())[2:]], "2 slice(s), at least 3"),
    "other bits": (lambda f: [change(p, BitsAllocated=8, BitsStored=8, HighBit=7) for p in f.iterdir()], "240 bytes of pixels"),
    "negative spacing": (lambda f: [change(p, PixelSpacing=[-1, 1]) for p in f.iterdir()], "PixelSpacing -1 x 1 mm must"),
    "slope 0": (lambda f: [change(p, RescaleSlope=0) for p in f.iterdir()], "RescaleSlope is 0"),
    "implausible": (lambda f: [change(p, PixelSpacing=[2000, 2000]) for p in f.iterdir()], "not plausible"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_bad_series_are_refused_with_file_and_remedy(series, kind):
    damage, message = FAULTS[kind]
    damage(series)
    with pytest.raises(InputError) as caught:
        read_series(series)
    assert message in str(caught.value)
    assert str(series) in str(caught.value)
    assert ";" in str(caught.value)  # followed by the remedy


def test_a_real_series_equals_its_shuffled_copy(tmp_path):
    folder = REAL / "ct" / "dicom"
    if not folder.is_dir():
        pytest.skip("../shared/real does not exist")
    source = next(folder.iterdir())
    real = read_series(source)
    assert real.shape == (512, 512, 30)
    assert real.grid.spacing_mm == pytest.approx((8.0, 0.646484375, 0.646484375))
    names = np.random.default_rng(0).permutation(30)
    for number, path in zip(names, sorted(source.iterdir()), strict=True):
        (tmp_path / f"{number}.dcm").write_bytes(path.read_bytes())
    copy = read_series(tmp_path)
    assert all((copy.plane(k)[0] == real.plane(k)[0]).all() for k in range(30))
    stored, slope, intercept = real.plane(15)
    assert (stored * slope + intercept).mean() < 0  # mostly air and lung
