"""Masks of what an image shows (head or body), one cache entry an image; a hit starts no segmenter.

The cache lies in `.cache/segmentation` of the main checkout, outside of DVC's outputs, which DVC deletes. An entry's name is
the hash of (content of the image, segmenter, task, fast, version of the segmenter); its first line is the hash of the rest, so
that a damaged one is found and made again; it is renamed into place, so that processes do not meet."""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray

from quintet.errors import InputError, InputProblemsError
from quintet.files import atomic_file, atomic_folder, refuse_overlap, repository_root
from quintet.fusion.raw import find_patients, read_image
from quintet.params import Fusion

Mask = NDArray[np.bool_]  # [X, Y, Z] along the file's axes
MASKS, TABLE = "masks.zip", "masks.csv"
VERSIONS = {"threshold": "1", "none": "1"}
FEWEST = 8  # voxels


@dataclass(frozen=True)
class Segmenter:
    """What masks come from, as one value that is part of every cache entry's name."""

    kind: str  # threshold | totalsegmentator | none
    task: str
    fast: bool
    version: str
    program: str

    def key(self, path: Path) -> str:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        return hashlib.sha256(repr((content, self.kind, self.task, self.fast, self.version)).encode()).hexdigest()


def segmenter_for(params: Fusion, modality: str) -> Segmenter:
    """TotalSegmentator knows no PET: a modality whose task is none gets the threshold's mask."""
    task = params.segmenter_tasks.get(modality, "none")
    if params.segmenter != "totalsegmentator" or task == "none":
        kind = "threshold" if params.segmenter == "totalsegmentator" else params.segmenter
        return Segmenter(kind, "", False, VERSIONS[kind], "")
    return Segmenter("totalsegmentator", task, params.fast, version_of(params.totalsegmentator), params.totalsegmentator)


_versions: dict[str, str] = {}


def version_of(program: str) -> str:
    """What `program --version` says. Raises InputError where it is not there."""
    if program not in _versions:
        found = shutil.which(program)
        if not found:
            raise InputError(
                f"fusion.totalsegmentator={program}: no such program; install TotalSegmentator in an environment "
                "of its own (docs/fusion.md) and give its path, or use segmenter: threshold"
            )
        done = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise InputError(f"{found} --version ended with {done.returncode}: {_last(done.stderr)}; repair its environment")
        _versions[program] = done.stdout.strip()
    return _versions[program]


def cache_folder() -> Path:
    return repository_root() / ".cache" / "segmentation"


def mask_of(path: Path, segmenter: Segmenter, cache: Path | None = None) -> tuple[Mask, bool]:
    """The mask of one image, from the cache or made now; and whether it was there. Raises InputError, naming the file."""
    entry = (cache or cache_folder()) / segmenter.key(path)
    if (cached := _load(entry)) is not None:
        return cached, True
    array, grid = read_image(path)
    mask = (
        np.ones(array.shape, bool) if segmenter.kind == "none" else _threshold(array) if segmenter.kind == "threshold" else None
    )
    if mask is None:
        mask = _totalsegmentator(path, segmenter)
        if mask.shape != grid.shape:
            raise InputError(f"{path}: {segmenter.program} gave a mask of {mask.shape}, the image has {grid.shape}")
    if mask.sum() < FEWEST:
        raise InputError(
            f"{path}: {segmenter.kind} found nothing in it ({mask.sum()} voxels); remove the image, or choose another segmenter"
        )
    with atomic_file(entry) as beside:
        beside.write_bytes(_packed(mask))
    return mask, False


def _packed(mask: Mask) -> bytes:
    body = json.dumps(mask.shape).encode() + b"\n" + zlib.compress(np.packbits(mask).tobytes())
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def _unpacked(data: bytes) -> Mask | None:
    digest, _, body = data.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        return None
    head, _, bits = body.partition(b"\n")
    shape = json.loads(head)
    return np.unpackbits(np.frombuffer(zlib.decompress(bits), np.uint8), count=int(np.prod(shape))).reshape(shape).astype(bool)


def _load(entry: Path) -> Mask | None:
    return _unpacked(entry.read_bytes()) if entry.is_file() else None


def _threshold(array: NDArray[np.float32]) -> Mask:
    """Otsu's threshold, the largest component, holes filled."""
    from scipy.ndimage import binary_fill_holes, label
    from skimage.filters import threshold_otsu

    parts, count = label(array > threshold_otsu(array))
    if not count:
        return np.zeros(array.shape, bool)
    sizes = np.bincount(parts.ravel())
    return np.asarray(binary_fill_holes(parts == 1 + int(sizes[1:].argmax())))


def _totalsegmentator(path: Path, segmenter: Segmenter) -> Mask:
    """Call the program; everything it labels is mask. Its usage statistics are off."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "labels.nii.gz"
        command = [str(shutil.which(segmenter.program)), "-i", str(path), "-o", str(target), "--ml", "--task", segmenter.task]
        command += ["--fast"] if segmenter.fast else []
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=_quiet(Path(folder)))
        if done.returncode or not target.is_file():
            licence = " (this task needs a licence key)" if segmenter.task == "brain_structures" else ""
            said = _last(done.stderr or done.stdout)
            raise InputError(
                f"{path}: {segmenter.program} --task {segmenter.task} failed{licence}: {said}; are "
                "downloaded at first use, so run it once by hand where there is internet"
            )
        return np.asarray(nib.load(target).dataobj) > 0  # type: ignore[attr-defined]


def _quiet(folder: Path) -> dict[str, str]:
    """TotalSegmentator reads its settings (licence key, statistics) from a folder: the user's own, statistics switched off."""
    home = Path(os.environ.get("TOTALSEG_HOME_DIR", Path.home() / ".totalsegmentator"))
    settings = {"totalseg_id": "none", "prediction_counter": 0}
    if (home / "config.json").is_file():
        settings |= json.loads((home / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(settings | {"send_usage_stats": False}), encoding="utf-8")
    weights = os.environ.get("TOTALSEG_WEIGHTS_PATH", str(home / "nnunet" / "results"))
    return os.environ | {"TOTALSEG_HOME_DIR": str(folder), "TOTALSEG_WEIGHTS_PATH": weights}


def _last(text: str) -> str:
    return next((line for line in reversed(text.strip().splitlines()) if line.strip()), "no message")


def segment(raw: Path, out: Path, params: Fusion, *, workers: int = 1) -> tuple[pd.DataFrame, int]:
    """Write `out` = {masks.zip, masks.csv (a row an image: patient, modality, segmenter, task, status, voxels)}; returns the
    table and how many masks were made now.

    A failed case is a row with its reason and costs no other (`fusion.on_error=raise` then stops at the end, the masks that
    were made stay in the cache). Interrupted, it goes on where it stopped."""
    refuse_overlap(raw, out)
    patients, problems = find_patients(raw, params.names, params.modalities)
    jobs = [(p, m, path) for p, own in patients.items() for m, path in own.items()]
    segmenters = {m: segmenter_for(params, m) for m in params.modalities}
    cache = cache_folder().resolve()
    cache.mkdir(parents=True, exist_ok=True)
    found = Parallel(n_jobs=workers, return_as="generator")(delayed(_one)(path, segmenters[m], cache) for _, m, path in jobs)
    rows: list[tuple[object, ...]] = []
    made = 0
    with atomic_folder(out) as folder, zipfile.ZipFile(folder / MASKS, "w") as file:
        for (patient, modality, _), (key, error, hit) in zip(jobs, found, strict=True):
            own = segmenters[modality]
            mask = None if error else _load(cache / key)
            if mask is None and not error:
                error = f"{jobs[len(rows)][2]}: its mask went from {cache} meanwhile; run the stage again"
            if mask is not None:
                file.writestr(zipfile.ZipInfo(f"{patient}/{modality}"), _packed(mask))
            made += not hit and not error
            rows.append(
                (
                    patient,
                    modality,
                    own.kind,
                    own.task,
                    own.fast,
                    own.version,
                    error or "ok",
                    0 if mask is None else int(mask.sum()),
                )
            )
        table = pd.DataFrame(rows, columns=["patient", "modality", "segmenter", "task", "fast", "version", "status", "voxels"])
        problems += table["status"][table["status"] != "ok"].tolist()
        if problems and (params.on_error == "raise" or not (table["status"] == "ok").any()):
            raise InputProblemsError(f"{raw} (fusion.on_error=skip would leave these images out)", problems)
        table.to_csv(folder / TABLE, index=False)
    return table, made


def _one(path: Path, segmenter: Segmenter, cache: Path) -> tuple[str, str, bool]:
    """Cache key, what went wrong (or nothing), and whether the mask was there. `cache`: worker processes live on and may stand in
    another folder."""
    try:
        _, hit = mask_of(path, segmenter, cache)
    except InputError as error:
        return "", str(error), False
    except Exception as error:  # one image must not cost the others
        return "", f"{path}: {type(error).__name__}: {error}", False
    return segmenter.key(path), "", hit


def stored_masks(folder: Path, patient: str, modalities: Sequence[str]) -> dict[str, Mask]:
    """One patient's masks of what `segment` wrote; a modality whose segmentation failed is absent."""
    masks = {}
    with zipfile.ZipFile(folder / MASKS) as file:
        there = set(file.namelist())
        for modality in modalities:
            if (name := f"{patient}/{modality}") in there:
                if (mask := _unpacked(file.read(name))) is None:
                    raise InputError(f"{folder / MASKS}: {name} is damaged; run `dvc repro -f fusion_segment`")
                masks[modality] = mask
    return masks
