"""Read PNG, JPEG and single DICOM images as greyscale or RGB."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from quintet.errors import InputError
from quintet.imaging.dicom_pixels import PADDING_TAGS, padding_bounds

COLOURED = 0.1  # mean distance between the channels of a pixel; of X-rays 0, of stained slides up to 0.3
DICOM = (".dcm", ".dicom")  # file name suffixes
PICTURES = (".png", ".jpg", ".jpeg")


def read_grey(path: Path) -> NDArray[np.float32]:
    """Read one image as greyscale `[H, W]` in [0, 1], upright as viewers show it (EXIF orientation).

    Grey is taken from pictures that are stored in colour, 16-bit images keep their depth (one without values above 4095 has 12
    bits), and MONOCHROME1 is inverted.

    Raises InputError, naming the file, if it is missing, empty, corrupt, truncated, coloured, not a single plane or all of one
    value.
    """
    grey = _read_or_raise(Path(path), _read_dicom if Path(path).suffix.lower() in DICOM else _read_picture)
    if grey.ndim != 2 or min(grey.shape) < 2:
        raise InputError(f"{path}: expected one image plane of at least 2 x 2 pixels, got shape {grey.shape}")
    if grey.min() == grey.max():
        raise InputError(f"{path}: every pixel has the same value; remove the blank picture")
    return grey


def read_rgb(path: Path) -> Image.Image:
    """Read one picture as 8-bit RGB, upright as viewers show it; transparent pixels become white, the background of a slide.

    Raises InputError, naming the file, if it is missing, empty, corrupt, truncated, greyscale, of one colour or under 8 x 8.
    """
    image: Image.Image = _read_or_raise(Path(path), _read_rgb)
    if min(image.size) < 8:
        raise InputError(f"{path}: expected a picture of at least 8 x 8 pixels, got {image.size[0]} x {image.size[1]}")
    red, green, blue = (channel.tobytes() for channel in image.split())
    if red == green == blue and not image.getcolors(1):
        raise InputError(f"{path}: a greyscale picture stored in colour, expected a stained slide in RGB")
    if image.getcolors(1):
        raise InputError(f"{path}: every pixel has the same colour; remove the blank picture")
    return image


def _read_or_raise(path: Path, read: Callable[[Path], Any]) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty (0 bytes); copy it again")
    try:
        return read(path)
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(f"{path}: more than 179 megapixels; cut out or shrink what is of interest") from None
    except Exception as error:  # decoders raise many kinds of exceptions for damaged files
        raise InputError(f"{path} cannot be read: the file is corrupt or truncated ({error}); copy it again") from None


def _read_rgb(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode in ("1", "L", "LA") or image.mode.startswith(("I", "F")):
            raise InputError(f"{path}: a greyscale picture (mode {image.mode}), expected a stained slide in RGB")
        if image.mode in ("RGBA", "LA", "PA", "P"):
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, (255,) * 4), image).convert("RGB")
        return image.convert("RGB")


def _read_picture(path: Path) -> NDArray[np.float32]:
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode in ("I;16", "I;16B", "I;16L", "I"):
            pixels = np.asarray(image, np.float32)
            return pixels / np.float32(next((full for full in (255, 4095) if pixels.max() <= full), 65535))
        if image.mode == "F":
            return _rescale(np.asarray(image, np.float32))
        if image.mode in ("RGBA", "LA", "PA", "P"):  # transparent pixels become black
            image = image.convert("RGBA")
            if not image.getchannel("A").getbbox():
                raise InputError(f"{path}: every pixel is transparent; save the picture without an alpha channel")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
        channels = np.asarray(image.convert("RGB"), np.float32) / np.float32(255)
        if np.ptp(channels, axis=2).mean() > COLOURED:
            raise InputError(f"{path}: a coloured picture, expected an X-ray in grey; remove it")
        return np.asarray(image.convert("L"), np.float32) / np.float32(255)


def _read_dicom(path: Path) -> NDArray[np.float32]:
    import pydicom
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut

    dataset = pydicom.dcmread(path)
    if "PixelData" not in dataset:
        raise InputError(f"{path}: the DICOM file has no pixel data")
    stored = pixels = dataset.pixel_array
    if dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
    if pixels.ndim == 3 and pixels.shape[2] == 3:
        pixels = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    else:
        width = dataset.get("WindowWidth")
        if width not in (None, "") and np.min(width) < 1:  # 0 is written where no window was chosen; the standard forbids it
            del dataset.WindowWidth
        pixels = apply_voi_lut(apply_modality_lut(pixels, dataset), dataset)
    if pixels.ndim != 2:
        raise InputError(f"{path}: expected a single frame, got shape {pixels.shape}")
    grey = np.asarray(pixels, np.float32)
    measured = np.ones(grey.shape, bool)
    if stored.shape == grey.shape and (padding := padding_bounds({name: dataset.get(name) for name in PADDING_TAGS})):
        measured = (stored < padding[0]) | (stored > padding[1])
    if not measured.any():
        raise InputError(f"{path}: every pixel is padding (PixelPaddingValue); export the image again")
    grey = np.clip(grey, grey[measured].min(), grey[measured].max())  # padding counts as the nearest measured value
    grey = _rescale(grey)
    return 1 - grey if dataset.get("PhotometricInterpretation") == "MONOCHROME1" else grey


def _rescale(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale the range of values to [0, 1]; a constant image becomes 0."""
    low, high = float(pixels.min()), float(pixels.max())
    return (pixels - low) / (high - low) if high > low else np.zeros_like(pixels)


def resize(grey: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Resize `[H, W]` to `[size, size]` with anti-aliasing; as in the reference, the aspect ratio is not preserved."""
    return np.clip(np.asarray(Image.fromarray(grey).resize((size, size), Image.Resampling.BILINEAR)), 0, 1)
