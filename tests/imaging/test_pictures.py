"""Single pictures: blank ones, and DICOM tags that scanners and archives write."""

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from quintet.errors import InputError
from quintet.imaging.pictures import read_grey, read_rgb

RAMP = np.linspace(500, 3500, 40 * 30).reshape(40, 30).astype(np.uint16)


def write(path, pixels=RAMP, **tags):
    """A digital X-ray; `tags` replace its own."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3"
    bits = 8 * pixels.itemsize
    values = {"Rows": 40, "Columns": 30, "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": bits}
    values |= {"BitsStored": bits, "HighBit": bits - 1, "PixelRepresentation": 0}
    for name, value in (values | tags).items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def expected(tmp_path):
    return read_grey(write(tmp_path / "expected.dcm"))


@pytest.mark.parametrize("full", [255, 4095, 65535])
def test_a_png_of_16_bits_is_as_bright_as_its_values_of_8_12_or_16_bits(tmp_path, full):
    values = np.linspace(0, full, 40 * 30).reshape(40, 30).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    assert np.allclose(read_grey(tmp_path / "x.png"), values / full)


@pytest.mark.parametrize("width", [0, 0.5])
def test_a_window_without_width_is_no_window(tmp_path, expected, width):
    assert (read_grey(write(tmp_path / "x.dcm", WindowCenter=2000, WindowWidth=width)) == expected).all()


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("padding", [0, 60_000])
def test_padding_does_not_stretch_the_grey_values(tmp_path, padding, inverted):
    kind = {"PhotometricInterpretation": "MONOCHROME1" if inverted else "MONOCHROME2"}
    expected = read_grey(write(tmp_path / "whole.dcm", **kind))
    pixels = RAMP.copy()
    pixels[:, :5] = padding
    found = read_grey(write(tmp_path / "padded.dcm", pixels, PixelPaddingValue=padding, **kind))
    assert np.abs(found - expected)[:, 5:].max() < 0.01
    with pytest.raises(InputError, match="every pixel is padding"):
        read_grey(write(tmp_path / "only.dcm", np.full_like(RAMP, padding), PixelPaddingValue=padding))


@pytest.mark.parametrize("form", ["unsigned", "range"])
def test_padding_of_signed_pixels_in_every_form(tmp_path, form):
    signed = {"PixelRepresentation": 1}
    expected = read_grey(write(tmp_path / "whole.dcm", RAMP.astype(np.int16), **signed))
    pixels = RAMP.astype(np.int16)
    pixels[:, :5] = -2000
    if form == "range":
        pixels[:, :2] = -1990
        path = write(tmp_path / "padded.dcm", pixels, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1980, **signed)
    else:
        dataset = pydicom.dcmread(write(tmp_path / "padded.dcm", pixels, **signed))
        dataset.add_new("PixelPaddingValue", "US", 2**16 - 2000)
        dataset.save_as(path := tmp_path / "unsigned.dcm")
    assert np.abs(read_grey(path) - expected)[:, 5:].max() < 0.01


def test_palette_colours_become_luminance(tmp_path):
    table = np.linspace(0, 255, 256).astype(np.uint8)
    palette = {f"{c}PaletteColorLookupTableData": table.tobytes() for c in ("Red", "Green", "Blue")}
    palette |= {f"{c}PaletteColorLookupTableDescriptor": [256, 0, 8] for c in ("Red", "Green", "Blue")}
    index = (np.arange(40 * 30) % 256).astype(np.uint8).reshape(40, 30)
    found = read_grey(write(tmp_path / "x.dcm", index, PhotometricInterpretation="PALETTE COLOR", **palette))
    assert np.abs(found - index / 255).max() < 0.01


@pytest.mark.parametrize("value", [0, 17, 255])
def test_blank_pictures_are_refused(tmp_path, value):
    path = tmp_path / "x.png"
    Image.new("RGB", (20, 30), (value, min(value + 9, 255), value)).save(path)
    for read in (read_grey, read_rgb):
        with pytest.raises(InputError, match=r"x\.png: every pixel has the same (value|colour); remove the blank picture"):
            read(path)
    with pytest.raises(InputError, match="every pixel has the same value"):
        read_grey(write(tmp_path / "x.dcm", np.full_like(RAMP, value)))


def test_a_link_to_nowhere_and_a_folder_are_no_pictures(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "b.png").mkdir()
    for name in ("a", "b"):
        with pytest.raises(InputError, match=f"{name}.png: no such file"):
            read_rgb(tmp_path / f"{name}.png")


def test_a_greyscale_picture_stored_in_colour_is_no_stained_slide(tmp_path):
    grey = np.random.default_rng(0).integers(0, 255, (20, 20), dtype=np.uint8)
    Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "x.png")
    with pytest.raises(InputError, match="a greyscale picture stored in colour"):
        read_rgb(tmp_path / "x.png")
    assert np.allclose(read_grey(tmp_path / "x.png") * 255, grey, atol=0.5)


def test_a_picture_that_is_too_large_is_not_called_corrupt(tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "x.png")
    with pytest.raises(InputError, match="more than 179 megapixels"):
        read_grey(tmp_path / "x.png")


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_photographs_are_read_upright(tmp_path, orientation, suffix):
    """Slides and X-rays: as viewers show them, and as they were annotated."""
    upright = np.kron(np.random.default_rng(0).integers(0, 256, (4, 6, 1)) * [1, 0.9, 0.9], np.ones((16, 16, 1))).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = Image.fromarray(upright)
    for step in {5: ["TRANSPOSE"], 7: ["TRANSVERSE"], 3: ["ROTATE_180"], 2: ["FLIP_LEFT_RIGHT"], 4: ["FLIP_TOP_BOTTOM"]}.get(
        orientation, ["ROTATE_90" if orientation == 6 else "ROTATE_270"]
    ):
        turned = turned.transpose(Image.Transpose[step])
    turned.save(tmp_path / f"x.{suffix}", exif=exif, **({"quality": 100, "subsampling": 0} if suffix == "jpg" else {}))
    found = read_rgb(tmp_path / f"x.{suffix}")
    assert found.size == (96, 64)
    assert np.abs(np.asarray(found, float) - upright).max() < 20
    assert read_grey(tmp_path / f"x.{suffix}").shape == upright.shape[:2]
