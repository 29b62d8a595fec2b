"""From the raw tree to the prepared data set: one array per magnification, an index, and folds by patient."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray
from PIL import Image as PillowImage

from quintet.arrays import new_array
from quintet.breakhis.data.classes import MAGNIFICATIONS
from quintet.breakhis.data.folds import make_folds
from quintet.breakhis.data.prepared import Prepared, load
from quintet.breakhis.data.tree import Image, missing_magnifications, read_tree
from quintet.errors import InputError, InputProblemsError, sentences
from quintet.files import atomic_folder, md5, reject_overlap, write_json
from quintet.imaging.duplicates import near_pairs, perceptual_hash
from quintet.imaging.pictures import read_rgb
from quintet.params import BreakHis

CHUNK = 256  # images decoded at once
CHECK_SIZE = 8  # pixels; `check` uses only the hashes, which are computed from the original
COLUMNS = ["image", "patient", "class", "type", "magnification", "row", "file", "md5"]


def resize(picture: PillowImage.Image, size: int) -> NDArray[np.uint8]:
    """Resize to `[size, size, 3]`, in training and prediction alike; as in the reference, the aspect ratio is not preserved."""
    return np.asarray(picture.resize((size, size), PillowImage.Resampling.BILINEAR, reducing_gap=3.0))


def read_images(paths: Sequence[Path], size: int) -> list[tuple[NDArray[np.uint8], NDArray[np.bool_]] | InputError]:
    """The resized image and the perceptual hash of each file, or the error that names the file."""

    def read(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.bool_]] | InputError:
        try:
            picture = read_rgb(path)
        except InputError as error:
            return error
        return resize(picture, size), perceptual_hash(picture)

    return Parallel(n_jobs=-1, prefer="threads")(delayed(read)(path) for path in paths)  # PIL decodes outside the GIL


def check(raw: Path, params: BreakHis) -> list[str]:
    """Every problem of a raw folder, including pixels, duplicates and folds."""
    images, problems = read_tree(raw)
    hashes = []
    for start in range(0, len(images), CHUNK):
        results = read_images([image.path for image in images[start : start + CHUNK]], CHECK_SIZE)
        problems += [str(result) for result in results if isinstance(result, InputError)]
        hashes += [None if isinstance(result, InputError) else result[1] for result in results]
    readable = [image for image, image_hash in zip(images, hashes, strict=True) if image_hash is not None]
    for patient, missing in missing_magnifications(readable).items():
        print(f"note: patient {patient} has no image at {', '.join(missing)}")
    try:
        if readable and not any("both classes" in problem for problem in problems):
            folds, notes = make_folds(_patient_table(readable), raw, params.data)
            print("".join(f"note: {note}\n" for note in notes), end="")
            found = np.stack([image_hash for image_hash in hashes if image_hash is not None])
            reject_duplicates(readable, found, folds, params.data.near_duplicate_distance)
    except InputError as error:
        problems += sentences(error)
    return problems


def _patient_table(images: Sequence[Image]) -> pd.DataFrame:
    return pd.DataFrame(sorted({(image.patient, image.tumour_class) for image in images}), columns=["patient", "class"])


def reject_duplicates(images: Sequence[Image], hashes: NDArray[np.bool_], folds: pd.DataFrame, max_distance: int) -> None:
    """Raise InputProblemsError, naming both files, if patients in different parts of a fold share a picture, or any two patients,
    or two magnifications of one, share a file.

    `max_distance`: the largest Hamming distance between the hashes `[N, 64]` of one picture.
    """
    parts = folds.pivot(index="patient", columns="fold", values="part")
    problems = []
    for first, second in near_pairs(hashes, max_distance):
        a, b = images[first], images[second]
        if a.patient == b.patient:
            if a.magnification != b.magnification and a.path.read_bytes() == b.path.read_bytes():
                problems.append(f"{a.path} and {b.path} are the same file at two magnifications; delete the misplaced one")
            continue
        different = [fold for fold in parts.columns if parts.loc[a.patient, fold] != parts.loc[b.patient, fold]]
        if different:
            fold = different[0]
            where = f"{parts.loc[a.patient, fold]} and {parts.loc[b.patient, fold]} in fold {fold}"
            problems.append(f"{a.path} and {b.path} are nearly the same picture ({where}); delete the misplaced one")
        elif a.path.read_bytes() == b.path.read_bytes():
            problems.append(f"{a.path} and {b.path}, of two patients, are the same file; delete the misplaced one")
    if problems:
        raise InputProblemsError(
            "the same pictures are in two places (breakhis.data.near_duplicate_distance=0: equal hashes only)", problems
        )


def prepare(raw: Path, out: Path, params: BreakHis) -> tuple[Prepared, list[str]]:
    """Write the prepared data set to `out`, whole or not at all; returns it and one sentence per skipped image.

    All problems of the raw folder are listed at once; with `on_error: skip` the images concerned are left out instead. Memory
    stays bounded because the originals are decoded in chunks.
    """
    reject_overlap(raw, out)
    images, problems = read_tree(raw)
    if not images:
        raise InputProblemsError(str(raw), problems)
    images.sort(key=lambda image: (MAGNIFICATIONS.index(image.magnification), image.patient, image.path.name))
    with atomic_folder(out) as folder:
        table, hashes, unreadable = _write_images(folder, raw, images, params.data.size)
        problems += unreadable
        if problems and (params.data.on_error == "raise" or table.empty):
            hint = " (breakhis.data.on_error=skip leaves these images out)" if params.data.on_error == "raise" else ""
            raise InputProblemsError(f"{raw}{hint}", problems)
        readable = [Image(Path(raw) / r.file, r.patient, r[3], r.type, r.magnification) for r in table.itertuples()]
        if mixed := sorted(p for p, rows in table.groupby("patient")["class"].nunique().items() if rows > 1):
            raise InputError(f"{raw}: patient {mixed[0]} is under both classes; correct the tree, this cannot be skipped")
        folds, notes = make_folds(_patient_table(readable), raw, params.data)
        reject_duplicates(readable, hashes, folds, params.data.near_duplicate_distance)
        table.to_csv(folder / "index.csv", index=False)
        folds.to_csv(folder / "folds.csv", index=False)
        write_json(folder / "notes.json", notes)
        if (raw / "truth.csv").is_file():
            _copy_truth(raw / "truth.csv", folder / "truth.csv", set(folds["patient"]))
    return load(out), problems


def _copy_truth(source: Path, target: Path, patients: set[str]) -> None:
    """The truth behind phantoms. Raises InputError for a file that does not belong to these patients."""
    truth = pd.read_csv(source, dtype={"patient": str})
    if not {"patient", "probability"} <= set(truth.columns) or not patients <= set(truth["patient"]):
        raise InputError(
            f"{source}: not the truth of these phantoms (columns patient, probability); remove it or draw them again"
        )
    truth[truth["patient"].isin(patients)].to_csv(target, index=False)


def _write_images(folder: Path, raw: Path, images: list[Image], size: int) -> tuple[pd.DataFrame, NDArray[np.bool_], list[str]]:
    """Write images_40X.npy ... and return the index of the readable images, their hashes `[N, 64]`, and one sentence per
    unreadable image."""
    counts = Counter(image.magnification for image in images)
    arrays = {m: new_array(folder / f"all_{m}.npy", np.uint8, (counts[m], size, size, 3)) for m in MAGNIFICATIONS if counts[m]}
    next_row = dict.fromkeys(MAGNIFICATIONS, 0)
    rows, hashes, problems = [], [], []
    for start in range(0, len(images), CHUNK):
        chunk = images[start : start + CHUNK]
        for image, result in zip(chunk, read_images([image.path for image in chunk], size), strict=True):
            if isinstance(result, InputError):
                problems.append(str(result))
                continue
            row = next_row[image.magnification]
            arrays[image.magnification][row] = result[0]
            next_row[image.magnification] += 1
            hashes.append(result[1])
            labels = (image.path.stem, image.patient, image.tumour_class, image.tumour_type, image.magnification)
            rows.append((*labels, row, image.path.relative_to(raw).as_posix(), md5(image.path)))
    for m in MAGNIFICATIONS:
        filled = arrays[m][: next_row[m]] if m in arrays else np.empty((0, size, size, 3), np.uint8)
        np.save(folder / f"images_{m}.npy", filled)
        (folder / f"all_{m}.npy").unlink(missing_ok=True)
    return pd.DataFrame(rows, columns=COLUMNS), np.array(hashes), problems
