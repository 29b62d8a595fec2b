"""The data page: patients and images by type, folds, the images that an epoch uses, stain, and missing magnifications."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from quintet.breakhis.data.classes import CLASSES, MAGNIFICATIONS, TYPES, case_number
from quintet.breakhis.data.prepare import prepare
from quintet.breakhis.data.prepared import Prepared
from quintet.breakhis.data.sampling import utilisation
from quintet.figures import new_figure, save_figure
from quintet.pages import Section, write_page
from quintet.params import BreakHis

EPOCHS = 10
ASPECT = 460 / 700  # height : width of the original images


def analyze(raw: Path, page: Path, params: BreakHis) -> None:
    """Describe a raw tree as a page; the prepared data is not kept. Skipped images are listed."""
    skipping = params.skipping()
    with tempfile.TemporaryDirectory() as folder:
        write_data_page(page, *prepare(raw, Path(folder) / "prepared", skipping), skipping)


def write_data_page(page: Path, data: Prepared, skipped: list[str], params: BreakHis) -> None:
    """Write the HTML page of a prepared data set; skipped images are listed in full."""
    table, samples = data.table, params.training.samples
    with tempfile.TemporaryDirectory() as folder:
        figure = Path(folder) / "samples.png"
        _plot_samples(figure, data)
        sections = [
            Section("Images by type and magnification", _types_text(table), _types(table)),
            Section("Images as the networks see them", figures=[figure]),
            Section("Images per patient", "Number of images per patient: mean, smallest and largest.", _per_patient(table)),
            Section("Folds", _folds_text(data, params.data.split), _folds(data)),
            Section("Images used in an epoch", _sampling_text(samples), _sampling(data, samples)),
            Section("Stain", STAIN, _stain(data)),
            Section("Missing magnifications", _missing_text(table), _missing(table)),
        ]
        if skipped:
            sections.append(Section(f"{len(skipped)} skipped images", "\n\n".join(skipped)))
        classes = table.groupby("patient")["class"].first()
        lead = f"{len(table)} images of {len(classes)} patients, {(classes == 'malignant').sum()} of them malignant."
        write_page(page, "BreakHis: the data set", sections, lead=lead)


def _types_text(table: pd.DataFrame) -> str:
    types = table.groupby("patient")["type"].agg(lambda names: sorted(set(names)))
    several = ", ".join(f"{patient} ({' and '.join(names)})" for patient, names in types.items() if len(names) > 1)
    return f"Patients with images of two types: {several}." if several else ""


def _types(table: pd.DataFrame) -> pd.DataFrame:
    counts = pd.crosstab([table["class"], table["type"]], table["magnification"]).reindex(
        columns=list(MAGNIFICATIONS), fill_value=0
    )
    counts["images"] = counts.sum(axis=1)
    counts["patients"] = table.groupby(["class", "type"])["patient"].nunique()
    counts = counts.sort_index().rename_axis(columns=None).reset_index()
    total = {"class": "all", "type": "", **counts[[*MAGNIFICATIONS, "images"]].sum(), "patients": table["patient"].nunique()}
    return pd.concat([counts, pd.DataFrame([total])], ignore_index=True)


def _per_patient(table: pd.DataFrame) -> pd.DataFrame:
    counts = table.groupby(["class", "patient", "magnification"]).size().unstack(fill_value=0)
    rows = []
    for name, members in counts.groupby("class"):
        for m in members:
            rows.append((name, m, len(members), members[m].mean(), members[m].min(), members[m].max()))
    return pd.DataFrame(rows, columns=["class", "magnification", "patients", "mean", "smallest", "largest"])


def _folds_text(data: Prepared, split: str) -> str:
    origin = {"grouped": "Folds by patient, stratified by class", "official": "The data set's official folds"}.get(split, split)
    siblings = data.table["patient"].map(case_number).nunique() < data.table["patient"].nunique()
    text = f"{origin}. In each fold a patient is in one part only."
    if siblings:
        text += " Slides whose numbers differ only in letters (14-22549AB, 14-22549CD) come from one biopsy"
        text += " and stay together." if split == "grouped" else "."
    return text + "".join(f"\n\n{note}." for note in data.notes)


def _folds(data: Prepared) -> pd.DataFrame:
    patients = data.table.groupby("patient").agg(tumour_class=("class", "first"), images=("image", "size")).reset_index()
    rows = []
    for (fold, part), group in data.folds.merge(patients, on="patient").groupby(["fold", "part"]):
        row: dict[str, object] = {"fold": fold, "part": part, "patients": len(group), "images": group["images"].sum()}
        for name in CLASSES:
            members = group[group["tumour_class"] == name]
            row |= {f"{name} patients": len(members), f"{name} images": members["images"].sum()}
        rows.append(row)
    return pd.DataFrame(rows)


def _sampling_text(samples: int) -> str:
    return (
        f"Share of the training images of fold 0 that are used in each epoch, and in all epochs so far (training.samples = "
        f"{samples}). Every image of a patient is used once before any is used again."
    )


def _sampling(data: Prepared, samples: int) -> pd.DataFrame:
    patients = data.image_rows(data.patients("train", 0), MAGNIFICATIONS)
    in_epoch, so_far = utilisation(patients, samples, seed=0, epochs=EPOCHS)
    return pd.DataFrame({"epoch": np.arange(1, EPOCHS + 1), "used in the epoch": in_epoch, "used so far": so_far})


STAIN = """How much the mean colour of the images (0 to 255) differs between patients, and between the images of one patient. If
the former is much larger, a split by image would let a network recognise patients by their stain."""


def _stain(data: Prepared) -> pd.DataFrame:
    rows = []
    for m in MAGNIFICATIONS:
        images = data.table[data.table["magnification"] == m]
        if images.empty:
            continue
        colours = np.stack([data.images[m][row].mean((0, 1)) for row in images["row"]])
        groups = pd.DataFrame(colours, columns=list("RGB")).groupby(images["patient"].to_numpy())
        between, within = groups.mean().std(), groups.std().mean()
        rows += [(m, c, between[c], within[c]) for c in "RGB"]
    return pd.DataFrame(rows, columns=["magnification", "channel", "SD between patients", "SD within a patient"])


def _missing(table: pd.DataFrame) -> pd.DataFrame | None:
    available = table.groupby("patient")["magnification"].agg(set)
    missing = {p: [m for m in MAGNIFICATIONS if m not in found] for p, found in available.items()}
    rows = [(patient, ", ".join(names)) for patient, names in missing.items() if names]
    return pd.DataFrame(rows, columns=["patient", "has no image at"]) if rows else None


def _missing_text(table: pd.DataFrame) -> str:
    return "" if _missing(table) is not None else "None: every patient has images at every magnification."


def _plot_samples(path: Path, data: Prepared) -> None:
    """Plot the first image of each type at each magnification."""
    types: Sequence[str] = [name for name in TYPES if name in set(data.table["type"])]
    figure, axes = new_figure(1.5 * len(MAGNIFICATIONS) + 1.5, 1.3 * len(types) + 0.5, len(types), len(MAGNIFICATIONS))
    for row, name in zip(np.reshape(axes, (len(types), -1)), types, strict=True):
        for axis, m in zip(row, MAGNIFICATIONS, strict=True):
            axis.axis("off")
            images = data.table[(data.table["type"] == name) & (data.table["magnification"] == m)]
            if len(images):
                axis.imshow(data.images[m][images["row"].iloc[0]], aspect=ASPECT)
            axis.set_title(f"{name} {m}" if m == MAGNIFICATIONS[0] else m, fontsize=7)
    save_figure(figure, path)
