"""The prepared data set, which training and evaluation read.

A folder with images.npy `[N, size, size]` uint8, cases.csv (one row per image) and split.csv.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet.errors import InputError
from quintet.landmarks.data.anatomy import LANDMARKS, Points

POINT_COLUMNS = [f"{axis}{k}" for k in range(LANDMARKS) for axis in "xy"]


@dataclass(frozen=True)
class Prepared:
    images: NDArray[np.uint8]  # [N, size, size]
    points: Points  # [N, 15, 2], fractions
    table: pd.DataFrame  # stem, category, group, width, height, x0, y0, ... (original pixels), split
    fold_count: ClassVar[int] = 1

    def rows(self, part: str) -> NDArray[np.int64]:
        """Rows of `table` in a part of the split: train, valid or test."""
        return np.flatnonzero(self.table["split"] == part)


def load(folder: Path) -> Prepared:
    """Read what `prepare` wrote. Images are memory-mapped, not loaded."""
    folder = Path(folder)
    if not (folder / "cases.csv").is_file():
        raise InputError(f"{folder}: not prepared yet; run `dvc repro landmarks_prepare`")
    table = pd.read_csv(folder / "cases.csv", dtype={"stem": str, "group": str})
    table = table.merge(pd.read_csv(folder / "split.csv", dtype=str), on="stem", how="left", validate="one_to_one")
    size = table[["width", "height"]].to_numpy(float)[:, None, :]
    points = table[POINT_COLUMNS].to_numpy(float).reshape(-1, LANDMARKS, 2) / size
    return Prepared(np.load(folder / "images.npy", mmap_mode="r"), points, table)
