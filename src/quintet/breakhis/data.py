"""Raw tree -> one uint8 array per magnification, an index and folds.

Prepared: images_40X.npy ... `[N, size, size, 3]` uint8 RGB, index.csv (one row an image), folds.csv (fold, patient, part).
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray
from PIL import Image as Pictures

from quintet.arrays import new_array
from quintet.breakhis.folds import make_folds
from quintet.breakhis.sampling import Patients
from quintet.breakhis.tree import CLASSES, MAGNIFICATIONS, TYPES, Image, missing_magnifications, read_tree
from quintet.errors import InputError, InputProblemsError
from quintet.files import atomic_folder, md5, refuse_overlap, write_json
from quintet.imaging.duplicates import near_pairs, perceptual_hash
from quintet.imaging.pictures import read_rgb
from quintet.params import BreakHis

CHUNK = 256  # decoded at once


@dataclass(frozen=True)
class Prepared:
    images: dict[str, NDArray[np.uint8]]  # magnification -> [N, size, size, 3]
    index: pd.DataFrame  # image, patient, class, type, magnification, row (in its magnification's array), file, md5
    folds: pd.DataFrame  # fold, patient, part
    notes: list[str]  # about the folds

    def patients(self, fold: int, part: str) -> list[str]:
        return sorted(self.folds["patient"][(self.folds["fold"] == fold) & (self.folds["part"] == part)])

    def rows(self, patients: Sequence[str], magnifications: Sequence[str]) -> Patients:
        """The patients' rows of the magnifications' arrays; patients that have none of them are left out."""
        groups = {key: own["row"].to_numpy() for key, own in self.index.groupby(["patient", "magnification"])}
        rows = {p: [groups.get((p, m), np.empty(0, np.int64)) for m in magnifications] for p in patients}
        kept = [p for p in patients if any(len(own) for own in rows[p])]
        return Patients(kept, [rows[p] for p in kept])

    def classes(self, patients: Sequence[str]) -> NDArray[np.int64]:
        """0 benign, 1 malignant."""
        own = dict(zip(self.index["patient"], self.index["class"], strict=True))
        return np.array([CLASSES.index(own[patient]) for patient in patients])

    def types(self, patients: Sequence[str]) -> NDArray[np.float32]:
        """Shares of the 8 types among each patient's images, `[P, 8]`; one person of the public data has two."""
        counts = pd.crosstab(self.index["patient"], self.index["type"]).reindex(columns=list(TYPES), fill_value=0)
        own = counts.loc[list(patients)].to_numpy(np.float32)
        return own / own.sum(1, keepdims=True)


def shrink(picture: Pictures.Image, size: int) -> NDArray[np.uint8]:
    """What every image goes through, in training and prediction alike: `[size, size, 3]`, the aspect ratio not kept (as in the
    reference)."""
    return np.asarray(picture.resize((size, size), Pictures.Resampling.BILINEAR, reducing_gap=3.0))


def read_images(paths: Sequence[Path], size: int) -> list[tuple[NDArray[np.uint8], NDArray[np.bool_]] | InputError]:
    """Shrunk image and perceptual hash of each file, or the error that names it."""

    def read(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.bool_]] | InputError:
        try:
            picture = read_rgb(path)
        except InputError as error:
            return error
        return shrink(picture, size), perceptual_hash(picture)

    return Parallel(n_jobs=-1, prefer="threads")(delayed(read)(path) for path in paths)  # PIL decodes outside the GIL


def check(raw: Path, params: BreakHis) -> list[str]:
    """Every problem of a raw folder, pixels, duplicates and folds included."""
    images, problems = read_tree(raw)
    hashes = []
    for start in range(0, len(images), CHUNK):
        read = read_images([image.path for image in images[start : start + CHUNK]], 8)
        problems += [str(r) for r in read if isinstance(r, InputError)]
        hashes += [None if isinstance(r, InputError) else r[1] for r in read]
    kept = [(image, own) for image, own in zip(images, hashes, strict=True) if own is not None]
    for patient, missing in missing_magnifications(image for image, _ in kept).items():
        print(f"note: patient {patient} has no image at {', '.join(missing)}")
    try:
        if kept and not any("both classes" in problem for problem in problems):
            folds, notes = make_folds(_patients([image for image, _ in kept]), raw, params)
            print("".join(f"note: {note}\n" for note in notes), end="")
            refuse_duplicates([image for image, _ in kept], np.stack([own for _, own in kept]), folds, params)
    except InputProblemsError as error:
        problems += error.problems
    except InputError as error:
        problems.append(str(error))
    return problems


def _patients(images: Sequence[Image]) -> pd.DataFrame:
    return pd.DataFrame(sorted({(image.patient, image.tumour_class) for image in images}), columns=["patient", "class"])


def refuse_duplicates(images: Sequence[Image], hashes: NDArray[np.bool_], folds: pd.DataFrame, params: BreakHis) -> None:
    """Raise, naming both files, where one picture belongs to patients of different parts of a fold."""
    parts = folds.pivot(index="patient", columns="fold", values="part")
    problems = []
    for one, other in near_pairs(hashes, params.near_duplicate_distance):
        a, b = images[one], images[other]
        apart = [f for f in parts.columns if parts.loc[a.patient, f] != parts.loc[b.patient, f]] if a.patient != b.patient else []
        if apart:
            where = f"{parts.loc[a.patient, apart[0]]} and {parts.loc[b.patient, apart[0]]} in fold {apart[0]}"
            problems.append(f"{a.path} and {b.path} are nearly the same picture ({where}); delete the one in the wrong place")
    if problems:
        raise InputProblemsError(
            "patients in different parts share pictures (breakhis.near_duplicate_distance=0: equal hashes only)", problems
        )


def refuse_overlapping_parts(folds: pd.DataFrame) -> None:
    """Raise where a patient stands in two parts of one fold."""
    double = folds[folds.duplicated(["fold", "patient"], keep=False)]
    if len(double):
        raise InputProblemsError("the folds", [f"fold {r.fold}: patient {r.patient} is in {r.part}" for r in double.itertuples()])


def prepare(raw: Path, out: Path, params: BreakHis) -> tuple[Prepared, list[str]]:
    """Write the prepared data set to `out`, whole or not at all; returns it and the skipped images.

    All problems are listed at once; memory stays bounded, as decoded originals are dropped chunk by chunk.
    """
    refuse_overlap(raw, out)
    images, problems = read_tree(raw)
    if not images:
        raise InputProblemsError(str(raw), problems)
    images.sort(key=lambda image: (MAGNIFICATIONS.index(image.magnification), image.patient, image.path.name))
    counts = Counter(image.magnification for image in images)
    rows: dict[str, int] = dict.fromkeys(MAGNIFICATIONS, 0)
    table, hashes = [], []
    with atomic_folder(out) as folder:
        arrays = {
            m: new_array(folder / f"all_{m}.npy", np.uint8, (counts[m], params.size, params.size, 3))
            for m in MAGNIFICATIONS
            if counts[m]
        }
        for start in range(0, len(images), CHUNK):
            chunk = images[start : start + CHUNK]
            for image, read in zip(chunk, read_images([image.path for image in chunk], params.size), strict=True):
                if isinstance(read, InputError):
                    problems.append(str(read))
                    continue
                row = rows[image.magnification]
                arrays[image.magnification][row] = read[0]
                rows[image.magnification] += 1
                hashes.append(read[1])
                own = (image.path.stem, image.patient, image.tumour_class, image.tumour_type, image.magnification)
                table.append((*own, row, image.path.relative_to(raw).as_posix(), md5(image.path)))
        if problems and (params.on_error == "raise" or not table):
            hint = " (breakhis.on_error=skip would leave these images out)" if params.on_error == "raise" else ""
            raise InputProblemsError(f"{raw}{hint}", problems)
        index = pd.DataFrame(table, columns=["image", "patient", "class", "type", "magnification", "row", "file", "md5"])
        kept = [Image(Path(raw) / r.file, r.patient, r[3], r.type, r.magnification) for r in index.itertuples()]
        if mixed := sorted(p for p, own in index.groupby("patient")["class"].nunique().items() if own > 1):
            raise InputError(f"{raw}: patient {mixed[0]} stands under both classes; correct the tree, it cannot be skipped")
        folds, notes = make_folds(_patients(kept), raw, params)
        refuse_overlapping_parts(folds)
        refuse_duplicates(kept, np.stack(hashes), folds, params)
        for m in MAGNIFICATIONS:
            filled = arrays[m][: rows[m]] if m in arrays else np.empty((0, params.size, params.size, 3), np.uint8)
            np.save(folder / f"images_{m}.npy", filled)
            (folder / f"all_{m}.npy").unlink(missing_ok=True)
        index.to_csv(folder / "index.csv", index=False)
        folds.to_csv(folder / "folds.csv", index=False)
        write_json(folder / "notes.json", notes)
    return load(out), problems


def load(folder: Path) -> Prepared:
    """Read what `prepare` wrote. The images stay on disk (memory-mapped) until rows are taken."""
    folder = Path(folder)
    if not (folder / "index.csv").is_file():
        raise InputError(f"{folder}: not prepared yet; run `dvc repro breakhis_prepare`")
    index = pd.read_csv(folder / "index.csv", dtype={"patient": str, "image": str}, keep_default_na=False)
    folds = pd.read_csv(folder / "folds.csv", dtype={"patient": str})
    there = set(index["magnification"])  # an empty file cannot be mapped
    images = {m: np.load(folder / f"images_{m}.npy", mmap_mode="r" if m in there else None) for m in MAGNIFICATIONS}
    return Prepared(images, index, folds, json.loads((folder / "notes.json").read_text(encoding="utf-8")))
