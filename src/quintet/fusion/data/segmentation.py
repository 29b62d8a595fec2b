"""Foreground masks of images (head or body), with one cache entry per image; a cache hit runs no segmenter.

The cache is in `.cache/segmentation` of the main checkout, outside DVC's outputs, which DVC deletes. An entry is named by the
hash of (content of the image, segmenter, task, fast, version of the segmenter). Its first line is the hash of the rest, so that a
damaged entry is detected and rebuilt. It is renamed into place, so that concurrent processes never read half of it."""

import functools
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray

from quintet.errors import InputError, InputProblemsError
from quintet.files import atomic_file, atomic_folder, reject_overlap, repository_root
from quintet.fusion.data.raw import find_patients, read_image
from quintet.params import Fusion
from quintet.params.fusion import FusionSegmentation

Mask = NDArray[np.bool_]  # [X, Y, Z] along the file's axes
MASKS, TABLE = "masks.zip", "masks.csv"
VERSIONS = {"threshold": "1", "none": "1"}
MIN_VOXELS = 8


@dataclass(frozen=True)
class Segmenter:
    """What makes a mask; part of every cache entry's name."""

    kind: str  # threshold | totalsegmentator | none
    task: str
    fast: bool
    version: str
    program: str

    def key(self, path: Path) -> str:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        return hashlib.sha256(repr((content, self.kind, self.task, self.fast, self.version)).encode()).hexdigest()


def segmenter_for(segmentation: FusionSegmentation, modality: str) -> Segmenter:
    """TotalSegmentator does not support PET: a modality with task none gets the threshold's mask."""
    task = segmentation.segmenter_tasks.get(modality, "none")
    if segmentation.segmenter != "totalsegmentator" or task == "none":
        kind = "threshold" if segmentation.segmenter == "totalsegmentator" else segmentation.segmenter
        return Segmenter(kind, "", False, VERSIONS[kind], "")
    program = segmentation.totalsegmentator
    return Segmenter("totalsegmentator", task, segmentation.fast, program_version(program), program)


@functools.cache
def program_version(program: str) -> str:
    """The version that a program reports. Raises InputError if it is not installed."""
    path = shutil.which(program)
    if not path:
        raise InputError(
            f"fusion.segmentation.totalsegmentator={program}: no such program; install TotalSegmentator in an environment "
            "of its own (docs/fusion.md) and give its path, or use segmenter: threshold"
        )
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"{path} --version ended with {done.returncode}: {_last_line(done.stderr)}; repair its environment")
    return done.stdout.strip()


def cache_folder() -> Path:
    return repository_root() / ".cache" / "segmentation"


def mask_of(path: Path, segmenter: Segmenter, channels: int = 1, *, cache: Path | None = None) -> tuple[Mask, bool]:
    """The mask of one image, read from the cache or made, and whether it was in the cache. Raises InputError, naming the file."""
    try:
        entry = (cache or cache_folder()) / segmenter.key(path)
    except OSError:
        read_image(path, channels)  # names the cause
        raise
    if (cached := _load(entry)) is not None:
        return cached, True
    mask = make_mask(path, read_image(path, channels)[0], segmenter)
    # `segment` reads the mask there; for others it only saves time, and the image is not at fault if it cannot be written
    with nullcontext() if cache else suppress(InputError, OSError), atomic_file(entry) as temporary:
        temporary.write_bytes(_pack(mask))
    return mask, False


def make_mask(path: Path, array: NDArray[np.float32], segmenter: Segmenter) -> Mask:
    """The mask of the first channel of the image `array` of the file `path`. Raises InputError, naming the file."""
    mask: Mask
    shape = array.shape[1:]
    if segmenter.kind == "none":
        mask = np.ones(shape, bool)
    elif segmenter.kind == "threshold":
        mask = _threshold(array[0])
    else:
        mask = _totalsegmentator(path, segmenter, several=len(array) > 1)
        if mask.shape != shape:
            raise InputError(f"{path}: {segmenter.program} made a mask of {mask.shape}, the image has {shape}")
    if mask.sum() < MIN_VOXELS:
        raise InputError(
            f"{path}: {segmenter.kind} found only {mask.sum()} voxels in it; remove the image, or choose another segmenter"
        )
    return mask


def _pack(mask: Mask) -> bytes:
    body = json.dumps(mask.shape).encode() + b"\n" + zlib.compress(np.packbits(mask).tobytes())
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def _unpack(data: bytes) -> Mask | None:
    digest, _, body = data.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        return None
    head, _, bits = body.partition(b"\n")
    shape = json.loads(head)
    return np.unpackbits(np.frombuffer(zlib.decompress(bits), np.uint8), count=int(np.prod(shape))).reshape(shape).astype(bool)


def _load(entry: Path) -> Mask | None:
    return _unpack(entry.read_bytes()) if entry.is_file() else None


def _threshold(array: NDArray[np.float32]) -> Mask:
    """Otsu's threshold, the largest component, holes filled."""
    from scipy.ndimage import binary_fill_holes, label
    from skimage.filters import threshold_otsu

    components, count = label(array > threshold_otsu(array))
    if not count:
        return np.zeros(array.shape, bool)
    sizes = np.bincount(components.ravel())
    return np.asarray(binary_fill_holes(components == 1 + int(sizes[1:].argmax())))


def _totalsegmentator(path: Path, segmenter: Segmenter, *, several: bool) -> Mask:
    """Run the program without usage statistics; every voxel that it labels belongs to the mask."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = path, Path(folder) / "labels.nii.gz"
        if several:  # the program takes three axes
            source = Path(folder) / "first.nii.gz"
            nib.save(nib.load(path).slicer[..., 0], source)  # type: ignore[attr-defined]
        command = [str(shutil.which(segmenter.program)), "-i", str(source), "-o", str(target), "--ml", "--task", segmenter.task]
        command += ["--fast"] if segmenter.fast else []
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=_without_statistics(Path(folder)))
        if done.returncode or not target.is_file():
            licence = " (this task needs a licence key)" if segmenter.task == "brain_structures" else ""
            raise InputError(
                f"{path}: {segmenter.program} --task {segmenter.task} failed{licence}: {_last_line(done.stderr or done.stdout)}; "
                "its weights are downloaded at first use, so run it once by hand where there is internet"
            )
        return np.asarray(nib.load(target).dataobj) > 0  # type: ignore[attr-defined]


def _without_statistics(folder: Path) -> dict[str, str]:
    """The environment for TotalSegmentator, which reads its settings (licence key, statistics) from a folder: the user's own
    settings, with usage statistics switched off."""
    home = Path(os.environ.get("TOTALSEG_HOME_DIR", Path.home() / ".totalsegmentator"))
    settings = {"totalseg_id": "none", "prediction_counter": 0}
    if (home / "config.json").is_file():
        settings |= json.loads((home / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(settings | {"send_usage_stats": False}), encoding="utf-8")
    weights = os.environ.get("TOTALSEG_WEIGHTS_PATH", str(home / "nnunet" / "results"))
    return os.environ | {"TOTALSEG_HOME_DIR": str(folder), "TOTALSEG_WEIGHTS_PATH": weights}


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.strip().splitlines()) if line.strip()), "no message")


def segment(raw: Path, out: Path, params: Fusion, *, workers: int = 1) -> tuple[pd.DataFrame, int]:
    """Write `out` = {masks.zip, masks.csv (one row per image: patient, modality, segmenter, task, fast, version, status,
    voxels)}; returns the table and how many masks were newly made rather than read from the cache.

    A failed image is a row with its reason and does not affect the others (with `fusion.data.on_error=raise` the stage then fails
    at the end; finished masks stay in the cache). An interrupted run continues where it stopped.
    """
    reject_overlap(raw, out)
    patients, problems = find_patients(raw, params.data.names, params.data.modalities) if params.data.modalities else ({}, [])
    jobs = [(p, m, path) for p, files in patients.items() for m, path in files.items()]
    channels = params.data.channels
    segmenters = {m: segmenter_for(params.segmentation, m) for m in params.data.modalities}
    cache = cache_folder().resolve()
    cache.mkdir(parents=True, exist_ok=True)
    tasks = (delayed(_try)(path, segmenters[m], channels.get(m, 1), cache) for _, m, path in jobs)
    results = Parallel(n_jobs=workers, return_as="generator")(tasks)
    rows: list[tuple[object, ...]] = []
    made = 0
    with atomic_folder(out) as folder, zipfile.ZipFile(folder / MASKS, "w") as file:
        for (patient, modality, path), (key, error, hit) in zip(jobs, results, strict=True):
            s, mask = segmenters[modality], None if error else _load(cache / key)
            if mask is None and not error:
                error = f"{path}: its mask disappeared from {cache} during the run; run the stage again"
            if mask is not None:
                file.writestr(zipfile.ZipInfo(f"{patient}/{modality}"), _pack(mask))
            made += not hit and not error
            voxels = 0 if mask is None else int(mask.sum())
            rows.append((patient, modality, s.kind, s.task, s.fast, s.version, error or "ok", voxels))
        table = pd.DataFrame(rows, columns=["patient", "modality", "segmenter", "task", "fast", "version", "status", "voxels"])
        problems += table["status"][table["status"] != "ok"].tolist()
        if problems and (params.data.on_error == "raise" or not (table["status"] == "ok").any()):
            raise InputProblemsError(f"{raw} (fusion.data.on_error=skip would leave these images out)", problems)
        table.to_csv(folder / TABLE, index=False)
    return table, made


def _try(path: Path, segmenter: Segmenter, channels: int, cache: Path) -> tuple[str, str, bool]:
    """Cache key, error message (or nothing), and whether the mask was in the cache. `cache` is given because worker processes
    outlive a call and may run in another folder."""
    try:
        _, hit = mask_of(path, segmenter, channels, cache=cache)
    except InputError as error:
        return "", str(error), False
    except Exception as error:  # one image must not affect the others
        return "", f"{path}: {type(error).__name__}: {error}", False
    return segmenter.key(path), "", hit


def stored_masks(folder: Path, patient: str, modalities: Sequence[str]) -> dict[str, Mask]:
    """One patient's masks as `segment` wrote them, without the modalities whose segmentation failed."""
    masks = {}
    path = folder / MASKS
    file = _archive(path, path.stat().st_mtime_ns)
    for modality in modalities:
        if (name := f"{patient}/{modality}") in file.NameToInfo:
            if (mask := _unpack(file.read(name))) is None:
                raise InputError(f"{path}: {name} is damaged; run `dvc repro -f fusion_segment`")
            masks[modality] = mask
    return masks


@functools.lru_cache(maxsize=1)
def _archive(path: Path, modified_ns: int) -> zipfile.ZipFile:
    """The open archive: reading its directory for every patient took half of the preparation of 1,440 patients."""
    return zipfile.ZipFile(path)
