"""What a request to a served run holds, and how it becomes a folder that `quintet predict` reads.

A request is a table: one row per image, scan or patient. Columns of bytes hold whole files (PNG, JPEG or DICOM; NIfTI), as base64
in JSON.
"""

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from quintet.errors import InputError
from quintet.imaging.folders import is_hidden

BYTES, TEXT, NUMBER = "binary", "string", "double"  # types of MLflow's signatures
Column = tuple[str, str, bool]  # name, type, required


@dataclass(frozen=True)
class Requests:
    """`columns`: of a request to these models. `example`: a request that any such model answers. `write`: a request's files into
    a folder; returns the options of the study's `predict`. `read`: the answer from the files that it wrote."""

    columns: Callable[[list[Any]], list[Column]]
    example: Callable[[list[Any]], pd.DataFrame]
    write: Callable[[pd.DataFrame, Path, list[Any]], dict[str, Any]]
    read: Callable[[Sequence[Path]], pd.DataFrame]
    adapt: Callable[[list[Any]], list[Any]] = lambda models: models  # to the names that `write` gives to files


def row_name(number: int) -> str:
    return f"row-{number:07d}"  # as text in the order of the rows


def _bytes(row: Mapping[str, Any], column: str, number: int) -> bytes:
    value = row.get(column)
    if not isinstance(value, bytes) or not value:
        raise InputError(f"{row_name(number)}: {column} is missing; it must hold a file's bytes (base64 in JSON)")
    return value


def _picture(data: bytes) -> str:
    return ".dcm" if data[128:132] == b"DICM" else ".png"  # of JPEG too: readers look at the content


def _volume(data: bytes) -> str:
    return ".nii.gz" if data[:2] == b"\x1f\x8b" else ".nii"


def _rows(table: pd.DataFrame) -> list[tuple[int, dict[str, Any]]]:
    if not len(table):
        raise InputError("the request has no row")
    return [(number, dict(row)) for number, row in enumerate(table.to_dict("records"))]


def png_of(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def nifti_of(array: NDArray[np.float32], spacing_mm: float) -> bytes:
    image: Any = nib.Nifti1Image(array, None)
    image.set_sform(np.diag([spacing_mm, spacing_mm, spacing_mm, 1]), code=1)
    return bytes(image.to_bytes())


def _ball(size: int, inside: float, outside: float) -> NDArray[np.float32]:
    """A textured ball `[size, size, size]`, as an example of a volume."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, size)] * 3, indexing="ij"))
    texture = np.random.default_rng(0).normal(0, 0.05, grid.shape[1:]) * (inside - outside)
    return np.where((grid**2).sum(0) < 0.7, inside + texture, outside).astype(np.float32)


# --- landmarks ---


def _write_pictures(table: pd.DataFrame, folder: Path, models: list[Any]) -> dict[str, Any]:
    for number, row in _rows(table):
        data = _bytes(row, "image", number)
        (folder / f"{row_name(number)}{_picture(data)}").write_bytes(data)
    return {}


def _read_points(files: Sequence[Path]) -> pd.DataFrame:
    expected = pd.read_csv(files[1]).drop(columns="stem")
    points = pd.read_csv(files[0], header=None).iloc[:, 1:-1]  # between the row's number and the name
    points.columns = pd.Index([f"{axis}{k}" for k in range(points.shape[1] // 2) for axis in "xy"])
    return pd.concat([points, expected], axis=1)


# --- perfusion ---


def _channels(models: list[Any]) -> list[str]:
    return [f"channel_{number:04d}" for number in range(len(models[0].build["channels"]))]


def _write_channels(table: pd.DataFrame, folder: Path, models: list[Any]) -> dict[str, Any]:
    for number, row in _rows(table):
        for channel, column in enumerate(_channels(models)):
            data = _bytes(row, column, number)
            (folder / f"{row_name(number)}_{channel:04d}{_volume(data)}").write_bytes(data)
    return {}


def _read_territories(files: Sequence[Path]) -> pd.DataFrame:
    """Volumes in ml, and the label map (1 left, 2 right, 3 both) as NIfTI in base64."""
    volumes = pd.read_csv(files[0] / "volumes.csv")
    masks = [base64.b64encode((files[0] / f"{case}.nii.gz").read_bytes()).decode() for case in volumes["case"]]
    return volumes.drop(columns="case").assign(territories=masks)


# --- ct ---


def _write_scans(table: pd.DataFrame, folder: Path, models: list[Any]) -> dict[str, Any]:
    for number, row in _rows(table):
        data = _bytes(row, "scan", number)
        (folder / f"{row_name(number)}{_volume(data)}").write_bytes(data)
    return {}


# --- breakhis ---


def _write_slides(table: pd.DataFrame, folder: Path, models: list[Any]) -> dict[str, Any]:
    for number, row in _rows(table):
        data, patient = _bytes(row, "image", number), row.get("patient")
        patient = "patient" if pd.isna(patient) or patient == "" else str(patient)
        if row["magnification"] not in models[0].magnifications:
            raise InputError(
                f"{row_name(number)}: magnification {row['magnification']!r}, expected {' or '.join(models[0].magnifications)}"
            )
        if not re.fullmatch(r"[\w-][\w. ()+-]{0,99}", patient) or is_hidden(patient):
            raise InputError(f"{row_name(number)}: patient {patient[:40]!r}: use up to 100 letters, digits, spaces and -_.()+")
        place = folder / patient / row["magnification"]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{row_name(number)}{_picture(data)}").write_bytes(data)
    return {}


def _slide_example(models: list[Any]) -> pd.DataFrame:
    picture = png_of(np.random.default_rng(0).integers(120, 250, (64, 64, 3), dtype=np.uint8))
    rows = [{"patient": "patient", "magnification": m, "image": picture} for m in models[0].magnifications]
    return pd.DataFrame(rows)


# --- fusion ---


def _known_names(models: list[Any]) -> list[Any]:
    """The models, which find an image by its modality's own name."""
    preparation = models[0].preparation
    named = preparation.model_copy(update={"names": {m: [m] for m in preparation.modalities}})
    return [replace(model, preparation=named) for model in models]


def _numbers_of(models: list[Any]) -> dict[str, list[str]]:
    """The columns of each modality that is a table."""
    return {name: list(encoder.columns) for name, encoder in models[0].vector_encoders.items()}


def _fusion_columns(models: list[Any]) -> list[Column]:
    """A clinical feature must be named, null where it is unknown: MLflow drops names that it does not know, as misspelt ones.
    The answer lists the other modalities that were used."""
    clinical = [(c.name, TEXT if hasattr(c, "values") else NUMBER, True) for c in models[0].encoder.columns]
    vectors = [(f"{name}/{column}", NUMBER, False) for name, columns in _numbers_of(models).items() for column in columns]
    return [*clinical, *vectors, *((m, BYTES, False) for m in models[0].preparation.modalities)]


def _fusion_example(models: list[Any]) -> pd.DataFrame:
    """A patient of whom the clinical features are known."""
    values: dict[str, Any] = {c.name: c.values[0] if hasattr(c, "values") else c.mean for c in models[0].encoder.columns}
    return pd.DataFrame([values])


def _write_patients(table: pd.DataFrame, folder: Path, models: list[Any]) -> dict[str, Any]:
    preparation, rows = models[0].preparation, _rows(table)
    names = [row_name(number) for number, _ in rows]
    texts = table.astype(object).where(table.notna(), "").set_axis(names)
    clinical = texts.reindex(columns=[column.name for column in models[0].encoder.columns], fill_value="")
    index = "patient" if preparation.columns.patient == "auto" else preparation.columns.patient
    clinical.rename_axis(index).to_csv(folder / preparation.tables[0])
    for name, columns in _numbers_of(models).items():
        wanted = [f"{name}/{column}" for column in columns]
        missing = [column for column in wanted if column not in table]
        if 0 < len(missing) < len(wanted):
            raise InputError(
                f"the request has no {', '.join(missing)}; give every column of {name} (null where unknown), or none"
            )
        own = texts.reindex(columns=wanted, fill_value="").set_axis(columns, axis=1)
        if (own != "").any(axis=None):
            (folder / "features").mkdir(exist_ok=True)
            own.rename_axis("patient").to_csv(folder / "features" / f"{name}.csv")
    for number, row in rows:
        for modality in preparation.modalities:
            data = row.get(modality)
            if isinstance(data, str) and data:
                raise InputError(f"{row_name(number)}: {modality} must hold a file's bytes (base64 in JSON), not a text")
            if isinstance(data, bytes) and data:
                (folder / row_name(number)).mkdir(exist_ok=True)
                (folder / row_name(number) / f"{modality}{_volume(data)}").write_bytes(data)
    return {"listed": names}


def _read_table(files: Sequence[Path]) -> pd.DataFrame:
    """The answer without the first column, who it is about, if that is the number of the request's row."""
    name = pd.read_csv(files[0], nrows=0).columns[0]
    table = pd.read_csv(files[0], dtype={name: str}, keep_default_na=False, na_values=[""])  # patients 007 and NA
    numbered = table[name].str.fullmatch(r"row-\d{7}").all()
    return table.drop(columns=name) if numbered else table


REQUESTS = {
    "landmarks": Requests(
        lambda models: [("image", BYTES, True)],
        lambda models: pd.DataFrame({"image": [png_of(np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8))]}),
        _write_pictures,
        _read_points,
    ),
    "perfusion": Requests(
        lambda models: [(name, BYTES, True) for name in _channels(models)],
        lambda models: pd.DataFrame([{name: nifti_of(_ball(24, 50, 0), 4.0) for name in _channels(models)}]),
        _write_channels,
        _read_territories,
    ),
    "ct": Requests(
        lambda models: [("scan", BYTES, True)],
        lambda models: pd.DataFrame({"scan": [nifti_of(_ball(24, 0, -1000), 12.0)]}),
        _write_scans,
        _read_table,
    ),
    "breakhis": Requests(
        lambda models: [("patient", TEXT, False), ("magnification", TEXT, True), ("image", BYTES, True)],
        _slide_example,
        _write_slides,
        _read_table,
    ),
    "fusion": Requests(_fusion_columns, _fusion_example, _write_patients, _read_table, _known_names),
}
