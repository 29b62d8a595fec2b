"""The prepared data set: what training and evaluation read.

A folder with volumes.npy `[N, M, S, S, S]` float16 (zeros for missing modalities), clinical.npy `[N, C]`, patients.csv (one row
per patient: patient, split, label or time and event, has/MODALITY ..., has/clinical) and about.json (modalities, classes, the
clinical encoder, the parameters of the preparation).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet.errors import InputError
from quintet.fusion.data.clinical import Encoder
from quintet.fusion.data.preparation import Preparation
from quintet.params.fusion import CLINICAL

VOLUMES, FEATURES = "volumes.npy", "clinical.npy"


@dataclass(frozen=True)
class Prepared:
    volumes: NDArray[np.float16]  # [N, M, S, S, S]
    clinical: NDArray[np.float32]  # [N, C]
    table: pd.DataFrame
    modalities: list[str]  # the imaging modalities, then clinical
    classes: list[str]  # empty: survival
    encoder: Encoder
    preparation: Preparation

    fold_count: ClassVar[int] = 1

    def rows(self, part: str) -> NDArray[np.int64]:
        return np.flatnonzero(self.table["split"] == part)

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which modalities each patient has, `[N, M + 1]`."""
        return self.table[[f"has/{name}" for name in self.modalities]].to_numpy(bool)

    @property
    def target(self) -> NDArray[np.float32]:
        """`[N, 2]`: time and event, or the class number and 1."""
        if not self.classes:
            return self.table[["time", "event"]].to_numpy(np.float32)
        number = [self.classes.index(label) for label in self.table["label"]]
        return np.stack([number, np.ones(len(number))], 1).astype(np.float32)


def load(folder: Path) -> Prepared:
    """Read what `prepare` wrote. The volumes stay on disk (memory-mapped) until rows are read."""
    folder = Path(folder)
    if not (folder / "patients.csv").is_file():
        raise InputError(f"{folder}: not prepared yet; run `dvc repro fusion_prepare`")
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    table = pd.read_csv(folder / "patients.csv", dtype={"patient": str, "label": str}, keep_default_na=False)
    return Prepared(
        np.load(folder / VOLUMES, mmap_mode="r"),
        np.load(folder / FEATURES),
        table,
        [*about["modalities"], CLINICAL],
        about["classes"],
        Encoder.from_dicts(about["encoder"]),
        Preparation(**about["how"]),
    )
