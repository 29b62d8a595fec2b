"""The prepared data set: what training and evaluation read.

A folder with volumes.npy `[N, S, S, S]` uint8 (memory-mapped), index.csv (one row per scan: study, patient, findings, split,
train_eval, acquisition), split.csv (study, split), about.json (findings, how scans became cubes) and, for phantoms, truth.csv
(study, the drawn findings).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet.errors import InputError

if TYPE_CHECKING:
    from quintet.ct.metrics import Scans

VOLUMES, TRUTH, ABOUT = "volumes.npy", "truth.csv", "about.json"


@dataclass(frozen=True)
class CubeFormat:
    """How scans become cubes (see `to_cube`): voxels per side, HU that become 0 and 255, side in mm (0: each scan's own)."""

    size: int
    window_hu: tuple[float, float]
    box_mm: float = 0.0

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "CubeFormat":
        return CubeFormat(**{**values, "window_hu": tuple(values["window_hu"])})


@dataclass(frozen=True)
class Prepared:
    volumes: NDArray[np.uint8]  # [N, S, S, S], in the order of the table
    table: pd.DataFrame  # index.csv
    findings: list[str]
    cubes: CubeFormat
    folder: Path
    fold_count: ClassVar[int] = 1

    def rows(self, part: str) -> NDArray[np.int64]:
        """Rows of `table` in a part of the split (train, valid or test)."""
        return np.flatnonzero(self.table["split"] == part)

    @property
    def train_eval_rows(self) -> NDArray[np.int64]:
        """Rows of the training scans whose embeddings are also evaluated after each epoch."""
        return np.flatnonzero(self.table["train_eval"] == 1)

    @property
    def labels(self) -> NDArray[np.float32]:
        """`[N, F]`, 0 or 1."""
        return self.table[self.findings].to_numpy(np.float32)

    @property
    def truth(self) -> NDArray[np.float32] | None:
        """`[N, F]` as drawn; None for data that is not. For the oracle alone: networks learn from `labels`."""
        path = self.folder / TRUTH
        return pd.read_csv(path)[self.findings].to_numpy(np.float32) if path.is_file() else None

    def scans(self, rows: NDArray[np.int64]) -> "Scans":
        """Names, patients and labels of some rows, for the retrieval metrics."""
        from quintet.ct.metrics import Scans  # imports torch, which the worker processes of prepare do not need

        chosen = self.table.iloc[rows]
        return Scans(chosen["study"].to_numpy(str), chosen["patient"].to_numpy(str), self.labels[rows], self.findings)


def load(folder: Path) -> Prepared:
    """Read what `prepare` wrote. The volumes stay on disk (memory-mapped) until they are used."""
    folder = Path(folder)
    if not (folder / "index.csv").is_file():
        raise InputError(f"{folder}: not prepared yet; run `dvc repro ct_prepare`")
    table = pd.read_csv(folder / "index.csv", dtype={"study": str, "patient": str}, keep_default_na=False)
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    volumes = np.load(folder / VOLUMES, mmap_mode="r")
    return Prepared(volumes, table, about["findings"], CubeFormat.from_dict(about["cubes"]), folder)
