"""The prepared data set: what training and evaluation read.

A folder with images.npy `[N, C, H, W]` float32 (normalised; N slices of all cases, each centred in the frame of the largest one,
0 outside), masks.npy `[N, 2, H, W]` and brain.npy `[N, H, W]` uint8, truth.npy (labels on the files' own grids, flattened;
1 left, 2 right, 3 both), oracle.npy (likewise, of synthetic data: before the annotator drew them), cases.csv (one row per case),
geometry.json, dataset.json, splits_final.json.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet.errors import InputError
from quintet.params.perfusion import Normalisation
from quintet.perfusion.data.geometry import Geometry

if TYPE_CHECKING:
    from torch import Tensor

SIDES = ("left", "right")
SCALING = [
    f"{side}_{part}" for side in SIDES for part in ("shift", "scale")
]  # columns of cases.csv: flow = shift + scale * image
Fold = dict[str, list[str]]  # "train", "val" -> sorted case names


@dataclass(frozen=True)
class Prepared:
    images: NDArray[np.float32]  # [N, C, H, W]
    masks: NDArray[np.uint8]  # [N, 2, H, W]
    brain: NDArray[np.uint8]  # [N, H, W]
    truth: NDArray[np.uint8]  # the labels, flattened
    oracle: NDArray[np.uint8] | None  # likewise: the territories behind synthetic labels
    table: pd.DataFrame  # case, subject, first (slice), slices, truth_at, volumes in ml
    geometry: list[Geometry]
    folds: list[Fold]
    channels: list[str]
    spacing_mm: tuple[float, float, float]  # slices, rows, columns
    normalisation: Normalisation

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

    def flow(self, row: int) -> NDArray[np.float32]:
        """The flow maps in the file's unit, `[slices, 2, rows, columns]`; 0 outside the brain."""
        images, brain = (centred(a[self.slices(row)], self.geometry[row].size) for a in (self.images, self.brain))
        shift, scale = self.table.loc[row, SCALING].to_numpy(np.float32).reshape(2, 2).T[..., None, None]
        flow: NDArray[np.float32] = np.where(brain[:, None], images[:, :2] * scale + shift, 0)
        return flow

    def label_masks(self, row: int) -> NDArray[np.bool_]:
        """The label on the file's own grid, `[2, X, Y, Z]`."""
        return self._masks(row, self.truth)

    def oracle_masks(self, row: int) -> NDArray[np.bool_]:
        """The territories behind a synthetic label, likewise. For the oracle alone."""
        assert self.oracle is not None
        return self._masks(row, self.oracle)

    def _masks(self, row: int, volumes: NDArray[np.uint8]) -> NDArray[np.bool_]:
        shape = self.geometry[row].grid.shape
        start = int(self.table.loc[row, "truth_at"])
        bits = volumes[start : start + int(np.prod(shape))].reshape(shape)
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
    names = ("images", "masks", "brain", "truth")
    images, masks, brain, truth = (np.load(folder / f"{name}.npy", mmap_mode="c") for name in names)
    oracle = np.load(folder / "oracle.npy", mmap_mode="c") if (folder / "oracle.npy").is_file() else None
    table = pd.read_csv(folder / "cases.csv", dtype={"case": str, "subject": str}, keep_default_na=False)
    geometry = [Geometry.from_json(mappings[name]) for name in table["case"]]
    slices_mm, rows_mm, columns_mm = dataset["spacing_mm"]
    return Prepared(
        images,
        masks,
        brain,
        truth,
        oracle,
        table,
        geometry,
        folds,
        dataset["channels"],
        (slices_mm, rows_mm, columns_mm),
        dataset["normalisation"],
    )
