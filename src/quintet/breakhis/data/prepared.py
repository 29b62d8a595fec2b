"""The prepared data set: what training and evaluation read.

A folder with images_40X.npy ... `[N, size, size, 3]` uint8 RGB, index.csv (one row per image), folds.csv (fold, patient, part),
notes.json (remarks on the folds) and, of phantoms, truth.csv (the drawn traits, which only the oracle may see).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quintet.breakhis.data.classes import CLASSES, MAGNIFICATIONS, TYPES
from quintet.breakhis.data.sampling import PatientRows
from quintet.errors import InputError


@dataclass(frozen=True)
class Prepared:
    images: dict[str, NDArray[np.uint8]]  # magnification -> [N, size, size, 3]
    table: pd.DataFrame  # image, patient, class, type, magnification, row (in its magnification's array), file, md5
    folds: pd.DataFrame  # fold, patient, part
    notes: list[str]  # about the folds
    truth: pd.DataFrame | None = None  # of phantoms: patient, traits, probability of malignant

    @property
    def fold_count(self) -> int:
        return int(self.folds["fold"].nunique())

    @property
    def image_size(self) -> int:
        """Width and height of the images in pixels."""
        return int(self.images[MAGNIFICATIONS[0]].shape[1])

    def patients(self, part: str, fold: int) -> list[str]:
        """The patients in a part (train, valid or test) of a fold."""
        return sorted(self.folds["patient"][(self.folds["fold"] == fold) & (self.folds["part"] == part)])

    def image_rows(self, patients: Sequence[str], magnifications: Sequence[str]) -> PatientRows:
        """Each patient's rows in the image arrays. Patients without an image at any of the magnifications are left out."""
        groups = {key: images["row"].to_numpy() for key, images in self.table.groupby(["patient", "magnification"])}
        rows = {p: [groups.get((p, m), np.empty(0, np.int64)) for m in magnifications] for p in patients}
        kept = [p for p in patients if any(len(r) for r in rows[p])]
        return PatientRows(kept, [rows[p] for p in kept])

    def classes(self, patients: Sequence[str]) -> NDArray[np.int64]:
        """0 for benign, 1 for malignant, `[P]`."""
        class_of = dict(zip(self.table["patient"], self.table["class"], strict=True))
        return np.array([CLASSES.index(class_of[patient]) for patient in patients])

    def types(self, patients: Sequence[str]) -> NDArray[np.float32]:
        """The share of each of the 8 types among a patient's images, `[P, 8]`. One patient of the public data has two types."""
        counts = pd.crosstab(self.table["patient"], self.table["type"]).reindex(columns=list(TYPES), fill_value=0)
        chosen = counts.loc[list(patients)].to_numpy(np.float32)
        return chosen / chosen.sum(1, keepdims=True)


def load(folder: Path) -> Prepared:
    """Read what `prepare` wrote. The images stay on disk (memory-mapped) until they are used."""
    folder = Path(folder)
    if not (folder / "index.csv").is_file():
        raise InputError(f"{folder}: not prepared yet; run `dvc repro breakhis_prepare`")
    table = pd.read_csv(folder / "index.csv", dtype={"patient": str, "image": str}, keep_default_na=False)
    folds = pd.read_csv(folder / "folds.csv", dtype={"patient": str})
    existing = set(table["magnification"])  # an empty array cannot be memory-mapped
    images = {m: np.load(folder / f"images_{m}.npy", mmap_mode="r" if m in existing else None) for m in MAGNIFICATIONS}
    notes, truth = json.loads((folder / "notes.json").read_text(encoding="utf-8")), folder / "truth.csv"
    return Prepared(images, table, folds, notes, pd.read_csv(truth, dtype={"patient": str}) if truth.is_file() else None)
