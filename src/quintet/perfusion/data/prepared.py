"""The prepared data set: what training and evaluation read.

A folder with images.npy `[N, C, H, W]` float32 (z-scores; N slices of all cases, each centred in the frame of the largest one, 0
outside), masks.npy `[N, 2, H, W]` uint8, truth.npy (labels on the files' own grids, flattened; 1 left, 2 right, 3 both),
cases.csv (one row per case), geometry.json, dataset.json, splits_final.json.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet.errors import InputError
from quintet.perfusion.data.geometry import Geometry

if TYPE_CHECKING:
    from torch import Tensor

SIDES = ("left", "right")
Fold = dict[str, list[str]]  # "train", "val" -> sorted case names


@dataclass(frozen=True)
class Prepared:
    images: NDArray[np.float32]  # [N, C, H, W]
    masks: NDArray[np.uint8]  # [N, 2, H, W]
    truth: NDArray[np.uint8]  # flattened
    table: pd.DataFrame  # case, subject, first (slice), slices, truth_at, volumes in ml
    geometry: list[Geometry]
    folds: list[Fold]
    channels: list[str]
    spacing_mm: tuple[float, float, float]  # slices, rows, columns

    @property
    def fold_count(self) -> int:
        return len(self.folds)

    def rows(self, part: str, fold: int) -> list[int]:
        """Rows of `table` in a part (train or val) of a fold."""
        names = set(self.folds[fold][part])
        return [row for row, name in enumerate(self.table["case"]) if name in names]

    def slices(self, row: int) -> slice:
        first, count = self.table.loc[row, ["first", "slices"]]
        return slice(int(first), int(first) + int(count))

    def sizes(self) -> NDArray[np.int64]:
        """Rows and columns of each slice without its padding, `[N, 2]`."""
        sizes = np.array([g.size for g in self.geometry])
        return np.repeat(sizes, self.table["slices"], axis=0)

    def tensors(self) -> "tuple[Tensor, Tensor, Tensor]":
        """`images`, `masks` and `sizes()`, on the CPU; the first two share the memory-mapped arrays."""
        import torch

        return torch.from_numpy(self.images), torch.from_numpy(self.masks), torch.from_numpy(self.sizes())

    def label_masks(self, row: int) -> NDArray[np.bool_]:
        """The label on the file's own grid, `[2, X, Y, Z]`."""
        shape = self.geometry[row].grid.shape
        start = int(self.table.loc[row, "truth_at"])
        bits = self.truth[start : start + int(np.prod(shape))].reshape(shape)
        return np.stack([bits & 1, bits & 2]).astype(bool)


def centred(frames: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """A view of the middle `[..., rows, columns]` of frames `[..., H, W]`: where a case smaller than the largest one lies."""
    top, left = ((frame - inner) // 2 for frame, inner in zip(frames.shape[-2:], size, strict=True))
    return frames[..., top : top + size[0], left : left + size[1]]


def load(folder: Path) -> Prepared:
    """Read what `prepare` wrote; images, masks and labels stay on disk (memory-mapped) until they are used."""
    folder = Path(folder)
    if not (folder / "cases.csv").is_file():
        raise InputError(f"{folder}: not prepared yet; run `dvc repro perfusion_prepare`")
    dataset, mappings, folds = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("dataset", "geometry", "splits_final")
    )
    # "c" and not "r": torch wants writable arrays; changes stay in memory
    arrays = [np.load(folder / f"{name}.npy", mmap_mode="c") for name in ("images", "masks", "truth")]
    table = pd.read_csv(folder / "cases.csv", dtype={"case": str, "subject": str}, keep_default_na=False)
    geometry = [Geometry.from_json(mappings[name]) for name in table["case"]]
    slices_mm, rows_mm, columns_mm = dataset["spacing_mm"]
    images, masks, truth = arrays
    return Prepared(images, masks, truth, table, geometry, folds, dataset["channels"], (slices_mm, rows_mm, columns_mm))
