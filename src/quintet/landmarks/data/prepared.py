"""The prepared data set, which training and evaluation read.

A folder with images.npy `[N, size, size]` uint8, cases.csv (one row per image) and split.csv; for phantoms also truth.csv.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet.errors import InputError
from quintet.landmarks.data.anatomy import LANDMARKS, Points, to_fractions

POINT_COLUMNS = [f"{axis}{k}" for k in range(LANDMARKS) for axis in "xy"]
TRUTH = "truth.csv"


@dataclass(frozen=True)
class Prepared:
    images: NDArray[np.uint8]  # [N, size, size]
    points: Points  # [N, 15, 2], fractions
    table: pd.DataFrame  # stem, category, group, width, height, x0, y0, ... (original pixels), split
    folder: Path | None = None
    fold_count: ClassVar[int] = 1

    def rows(self, part: str) -> NDArray[np.int64]:
        """Rows of `table` in a part of the split: train, valid or test."""
        return np.flatnonzero(self.table["split"] == part)

    def truth(self) -> Points | None:
        """The landmarks without label noise `[N, 15, 2]`, fractions, for the oracle alone; None for data that were not drawn."""
        if self.folder is None or not (self.folder / TRUTH).is_file():
            return None
        return _fractions(pd.read_csv(self.folder / TRUTH), self.table)


def load(folder: Path) -> Prepared:
    """Read what `prepare` wrote. Images are memory-mapped, not loaded."""
    folder = Path(folder)
    if not (folder / "cases.csv").is_file():
        raise InputError(f"{folder}: not prepared yet; run `dvc repro landmarks_prepare`")
    table = pd.read_csv(folder / "cases.csv", dtype={"stem": str, "group": str})
    table = table.merge(pd.read_csv(folder / "split.csv", dtype=str), on="stem", how="left", validate="one_to_one")
    return Prepared(np.load(folder / "images.npy", mmap_mode="r"), _fractions(table, table), table, folder)


def _fractions(points: pd.DataFrame, cases: pd.DataFrame) -> Points:
    """Points in original pixels as fractions `[N, 15, 2]` of the images' sizes."""
    pixels = points[POINT_COLUMNS].to_numpy(float).reshape(-1, LANDMARKS, 2)
    return to_fractions(pixels, cases[["width", "height"]].to_numpy(float))
