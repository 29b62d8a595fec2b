"""Which bits of a DICOM image's stored pixels count, and which pixels were never measured. `tags`: DICOM names -> values."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

AIR_HU = -1000.0
PADDING_TAGS = (
    *("PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),  # how these are stored
)
BODY_HU = (-950.0, 3000.0)  # padding within this range is only believed at the edge of a slice


def bits_of(tags: dict[str, Any]) -> tuple[int, int, int]:
    """BitsAllocated, BitsStored and HighBit; the last two may be absent."""
    allocated = int(tags["BitsAllocated"])
    stored = int(tags["BitsStored"] or allocated)
    return allocated, stored, int(stored - 1 if tags["HighBit"] is None else tags["HighBit"])


def stored_type(tags: dict[str, Any]) -> np.dtype[Any]:
    """The type of a stored pixel, little-endian."""
    return np.dtype(f"<{'i' if tags['PixelRepresentation'] else 'u'}{int(tags['BitsAllocated']) // 8}")


def used_bits(pixels: NDArray[Any], tags: dict[str, Any]) -> NDArray[Any]:
    """The number in the BitsStored bits up to HighBit; the others may hold an overlay, or lack the sign (PS3.5, 8.1.1)."""
    allocated, stored, high = bits_of(tags)
    if stored == allocated:
        return pixels
    return (pixels << (allocated - 1 - high)) >> (allocated - stored)  # the right shift copies the sign of a signed type


def without_padding(stored: NDArray[Any], tags: dict[str, Any], slope: float, intercept: float) -> NDArray[Any]:
    """Voxels that were never measured, marked by PixelPaddingValue (to PixelPaddingRangeLimit, PS3.3 C.7.5.1.1.2), become air.

    Some writers name a value that tissue has as well (0, which is water): such voxels are padding only at the edge."""
    known = padding_bounds(tags)
    if not known or not (padded := (stored >= known[0]) & (stored <= known[1])).any():
        return stored
    if any(BODY_HU[0] < value * slope + intercept < BODY_HU[1] for value in known):
        regions, _ = label(padded)
        edge = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
        padded &= np.isin(regions, edge)
    return np.where(padded, np.float32((AIR_HU - intercept) / slope), stored.astype(np.float32))


def padding_bounds(tags: dict[str, Any]) -> list[int]:
    """The lowest and the highest stored value that marks a pixel as never measured, from PADDING_TAGS; none if no such value is
    named."""
    value, limit = (_padding(tags[name], tags) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"))
    if value is None:
        return []
    return sorted((value, value if limit is None else limit))


def _padding(value: Any, tags: dict[str, Any]) -> int | None:
    """A padding value as pixels have it: written as signed or unsigned, or as bytes, whatever the pixels are."""
    if value is None or str(value) == "":
        return None
    number = int.from_bytes(value, "little") if isinstance(value, bytes) else int(value)
    dtype = stored_type(tags)
    pixel = np.array([number % 2 ** int(tags["BitsAllocated"])]).astype(dtype.str.replace("i", "u")).view(dtype)
    return int(used_bits(pixel, tags)[0])
