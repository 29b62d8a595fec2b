"""One good series, and every fault it can have."""

import io

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


def _second_phase(folder):
    for number, path in enumerate(sorted(folder.iterdir())):
        (folder / f"venous-{number}.dcm").write_bytes(path.read_bytes())


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
    "header cut": (_header_cut, "copy it again if it was cut off"),
    "two phases": (_second_phase, "every place holds 2 slices: 2 acquisitions (phases)"),
    "no DICOM": (lambda f: (f / "readme.txt").write_text("hello"), "not a DICOM file"),
    "empty": (lambda f: [p.unlink() for p in f.iterdir()], "has no files"),
    "too few": (lambda f: [p.unlink() for p in sorted(f.iterdir())[2:]], "2 slice(s), at least 3"),
    "other bits": (lambda f: [change(p, BitsAllocated=8, BitsStored=8, HighBit=7) for p in f.iterdir()], "240 bytes of pixels"),
    "bits that do not fit": (lambda f: change(nth(f, 1), HighBit=20), "HighBit 20 do not fit into BitsAllocated 16"),
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


def rewrite(folder, function):
    """Write every slice with the stored pixels that function(HU, dataset) makes; it may change tags. Returns the HU."""
    before = values(read_series(folder))
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        hu = (dataset.pixel_array * dataset.RescaleSlope + dataset.RescaleIntercept).astype("<i2")
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
        dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = 1, 16, 15
        dataset.PixelData = function(hu, dataset).tobytes()
        dataset.save_as(path)
    return before


def _overlay(pixels, dataset):
    """12 unsigned bits; the four above hold something else."""
    dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit, dataset.RescaleIntercept = 0, 12, 11, -1024
    return (pixels + 1024).astype("<u2") | np.random.default_rng(1).integers(0, 16, pixels.shape).astype("<u2") << 12


def _twelve_signed_bits(pixels, dataset):
    """The sign is in bit 11 alone."""
    dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = 1, 12, 11
    return pixels.astype("<i2").view("<u2") & 0x0FFF


def _shifted_up(pixels, dataset):
    """12 unsigned bits in bits 3 to 14."""
    dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit, dataset.RescaleIntercept = 0, 12, 14, -1024
    return (pixels + 1024).astype("<u2") << 3 | 0x8005


def _fourteen_signed_bits_under_an_overlay(pixels, dataset):
    dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = 1, 14, 13
    return (pixels.astype("<i2").view("<u2") & 0x3FFF) | 0x8000


def _signed_bits_shifted_up(pixels, dataset):
    dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = 1, 12, 13
    return (pixels.astype("<i2").view("<u2") & 0x0FFF) << 2 | 0x4001


def _eleven_bits(pixels, dataset):
    dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit, dataset.RescaleIntercept = 0, 11, 10, -1024
    return (pixels + 1024).astype("<u2") | 0xF800


@pytest.mark.parametrize(
    "store",
    [
        *(_overlay, _twelve_signed_bits, _shifted_up),
        *(_fourteen_signed_bits_under_an_overlay, _signed_bits_shifted_up, _eleven_bits),
    ],
)
def test_only_the_stored_bits_count(series, store):
    before = rewrite(series, store)
    assert np.array_equal(values(read_series(series)), before)


@pytest.mark.parametrize(("padding", "limit"), [(63536, None), (30000, 32000), (-2000, None)])
def test_padding_is_air(series, padding, limit):
    """A ring outside the field of view; voxels that were measured stay as they are."""

    def pad(pixels, dataset):
        signed = padding < 0
        dataset.PixelRepresentation, dataset.RescaleIntercept = int(signed), 0 if signed else -1024
        out = (pixels if signed else pixels + 1024).astype("<i2" if signed else "<u2")
        out[:3], out[3:, :2] = padding, limit or padding
        dataset.add_new("PixelPaddingValue", "SS" if signed else "US", padding)
        if limit:
            dataset.add_new("PixelPaddingRangeLimit", "US", limit)
        return out

    before = rewrite(series, pad)
    found = values(read_series(series))
    assert (found[:, :3] == -1000).all()
    assert (found[:, :, :2] == -1000).all()
    assert np.array_equal(found[:, 3:, 2:], before[:, 3:, 2:])


def test_padding_that_tissue_has_too_is_believed_at_the_edge_alone(series):
    def pad(pixels, dataset):
        pixels[pixels == 0] = 1
        pixels[0], pixels[6, 5] = 0, 0  # a row at the edge, and one voxel of water inside
        dataset.add_new("PixelPaddingValue", "SS", 0)
        return pixels

    rewrite(series, pad)
    found = values(read_series(series))
    assert (found[:, 0] == -1000).all()
    assert (found[:, 6, 5] == 0).all()


@pytest.mark.parametrize("implicit", [True, False])
def test_a_wrongly_declared_or_absent_syntax_is_found(series, implicit):
    """The header names one encoding and the data has the other; or there is no header at all."""
    before = values(read_series(series))
    declared, actual = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2") if implicit else ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
    for number, path in enumerate(sorted(series.iterdir())):
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(actual)
        buffer = io.BytesIO()
        dataset.save_as(buffer, implicit_vr=implicit, little_endian=True)
        written = buffer.getvalue()
        if number % 2 and implicit:  # without preamble and meta header
            start = 144 + int.from_bytes(written[140:144], "little")
            path.write_bytes(written[start:])
            continue
        old, new = (uid.encode() + b"\0" * (len(uid) % 2) for uid in (actual, declared))
        at = written.index(old)
        group = int.from_bytes(written[140:144], "little") + len(new) - len(old)
        head = written[: at - 2] + len(new).to_bytes(2, "little") + new + written[at + len(old) :]
        path.write_bytes(head[:140] + group.to_bytes(4, "little") + head[144:])
    assert np.array_equal(values(read_series(series)), before)


def test_files_without_a_header_are_read_in_either_encoding(series):
    """The data alone, as some archives store it: explicit or implicit, with or without the group that names the encoding."""
    before = values(read_series(series))
    for number, path in enumerate(sorted(series.iterdir())):
        dataset = pydicom.dcmread(path)
        explicit = number % 2 == 0
        dataset.file_meta.TransferSyntaxUID = (
            pydicom.uid.ExplicitVRLittleEndian if explicit else pydicom.uid.ImplicitVRLittleEndian
        )
        buffer = io.BytesIO()
        dataset.save_as(buffer, implicit_vr=not explicit, little_endian=True)
        written = buffer.getvalue()
        start = 132 if number % 3 == 0 else 144 + int.from_bytes(written[140:144], "little")
        path.write_bytes(written[start:])
    assert np.array_equal(values(read_series(series)), before)


@pytest.mark.parametrize("extra", [2, 37 * 2, 512])
@pytest.mark.parametrize("filler", [0, 0xFF])
def test_what_follows_the_pixels_is_padding(series, extra, filler):
    rest = np.full(extra // 2, filler * 257, np.uint16).view(np.int16)
    before = rewrite(series, lambda hu, _: np.concatenate([hu.ravel(), rest]))
    if filler:  # more pixels than the header counts: not padding
        with pytest.raises(InputError, match="bytes of pixels"):
            read_series(series)
    else:
        assert np.array_equal(values(read_series(series)), before)


@pytest.mark.parametrize(("apart", "rounded_to"), [(0.63, 0.1), (1.25, 0.1), (0.625, 0.01), (3.75, 0.1), (1.0 / 3, 0.1)])
def test_rounded_positions_are_no_fault(series, apart, rounded_to):
    for number, path in enumerate(sorted(series.iterdir())):
        place = round(round(apart * number / rounded_to) * rounded_to, 6)
        change(path, ImagePositionPatient=[7, 11, place])
    found = read_series(series)
    assert found.grid.spacing_mm[0] == pytest.approx(apart, abs=rounded_to / 4)
    assert len(found.slices) == 6


@pytest.mark.parametrize("size", [2e-7, 1e-6, 5e-6])
@pytest.mark.parametrize("tilt", [0.0, 0.3])
def test_jitter_is_no_fault(series, size, tilt):
    """Of the directions and pixel sizes, also where the slices are oblique."""
    rows, columns = np.array([1.0, 0, 0]), np.array([0, np.cos(tilt), np.sin(tilt)])
    across = np.cross(rows, columns)
    for number, path in enumerate(sorted(series.iterdir())):
        jitter = size * (-1) ** number
        change(
            path,
            ImagePositionPatient=[round(v, 5) for v in 5 * number * across + [7, 11, 13]],
            ImageOrientationPatient=[*(rows + np.array([0, jitter, 0])), *(columns - np.array([jitter, 0, 0]))],
            PixelSpacing=[2.0 + jitter, 1.5 - jitter],
        )
    found = read_series(series)
    assert found.grid.spacing_mm == pytest.approx((5.0, 2.0, 1.5), abs=1e-4)


@pytest.mark.parametrize("phases", [2, 3])
@pytest.mark.parametrize("tag", ["AcquisitionNumber", "AcquisitionTime", "ContentTime"])
def test_phases_are_to_be_put_into_folders_of_their_own(series, phases, tag):
    for number, path in enumerate(sorted(series.iterdir())):
        for phase in range(1, phases):
            other = series / f"phase{phase}-{number}.dcm"
            other.write_bytes(path.read_bytes())
            change(
                other, **{tag: phase if tag == "AcquisitionNumber" else f"12000{phase}"}, SOPInstanceUID=f"1.2.3.{phase}.{number}"
            )
    with pytest.raises(InputError, match=f"every place holds {phases} slices: {phases} acquisitions") as caught:
        read_series(series)
    assert "folder" in str(caught.value)


def test_a_phase_that_lacks_a_slice_is_no_duplicate(series):
    _second_phase(series)
    (series / "venous-0.dcm").unlink()
    with pytest.raises(InputError, match="most places hold 2 slices: 2 acquisitions"):
        read_series(series)


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
