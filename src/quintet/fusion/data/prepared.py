"""The prepared data set: what training and evaluation read.

A folder with volumes.npy `[N, M, S, S, S]` float16 (in the order of Preparation.cubes; zeros for missing modalities),
vectors.npz (`[N, W]` float32 for each modality that is a vector; the last one is clinical), patients.csv (one row per patient:
patient, split, label or time and event, and has/MODALITY for each modality), about.json (modalities, classes, encoders, the
parameters of the preparation) and, of drawn patients, truth.csv (the probability of the second class given each set of
modalities, which only the oracle may see).
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
from quintet.fusion.data.vectors import VectorEncoder

VOLUMES, VECTORS, TRUTH = "volumes.npy", "vectors.npz", "truth.csv"
UNLABELLED = "unlabelled"  # the part of patients without a target: imputation learns from them, too
EXTERNAL = "external"  # the part of patients of other hospitals, who are only tested


@dataclass(frozen=True)
class Prepared:
    volumes: NDArray[np.float16]  # [N, M, S, S, S]
    vectors: list[NDArray[np.float32]]  # [N, W] of each modality that is not an image; the last one: clinical
    table: pd.DataFrame
    modalities: list[str]  # the imaging modalities, then those that are vectors, then clinical
    classes: list[str]  # empty: survival
    encoder: Encoder
    vector_encoders: dict[str, VectorEncoder]
    preparation: Preparation
    truth: pd.DataFrame | None = None  # index patient, a column for each set of modalities

    fold_count: ClassVar[int] = 1

    def rows(self, part: str) -> NDArray[np.int64]:
        return np.flatnonzero(self.table["split"] == part)

    @property
    def clinical(self) -> NDArray[np.float32]:
        """`[N, C]`."""
        return self.vectors[-1]

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which modalities each patient has, `[N, K]`."""
        return self.table[[f"has/{name}" for name in self.modalities]].to_numpy(bool)

    @property
    def target(self) -> NDArray[np.float32]:
        """`[N, 2]`: time and event, or the class number and 1; NaN where it is not known."""
        if not self.classes:
            return self.table[["time", "event"]].to_numpy(np.float32)
        number = [self.classes.index(label) if label else np.nan for label in self.table["label"]]
        return np.stack([number, np.ones(len(number))], 1).astype(np.float32)


def load(folder: Path) -> Prepared:
    """Read what `prepare` wrote. The volumes stay on disk (memory-mapped) until rows are read."""
    folder = Path(folder)
    if not (folder / "patients.csv").is_file():
        raise InputError(f"{folder}: not prepared yet; run `dvc repro fusion_prepare`")
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    table = pd.read_csv(folder / "patients.csv", dtype={"patient": str, "subject": str, "label": str}, keep_default_na=False)
    for name in {"time", "event"} & {*table}:
        table[name] = pd.to_numeric(table[name], errors="coerce")
    vectors, truth = np.load(folder / VECTORS), folder / TRUTH
    return Prepared(
        np.load(folder / VOLUMES, mmap_mode="r"),
        [vectors[name] for name in vectors.files],
        table,
        about["modalities"],
        about["classes"],
        Encoder.from_dicts(about["encoder"]),
        {name: VectorEncoder(**values) for name, values in about["vectors"].items()},
        Preparation(**about["how"]),
        pd.read_csv(truth, dtype={"patient": str}).set_index("patient") if truth.is_file() else None,
    )
