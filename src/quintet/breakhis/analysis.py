"""The data-set page: who and what is in the tree, how it is split, what an epoch sees of it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from quintet.breakhis.data import Prepared, prepare
from quintet.breakhis.sampling import utilisation
from quintet.breakhis.tree import CLASSES, MAGNIFICATIONS, TYPES, case_number
from quintet.figures import new_figure, save_figure
from quintet.pages import Section, write_page
from quintet.params import BreakHis

EPOCHS = 10


def analyze(raw: Path, page: Path, params: BreakHis) -> None:
    """Describe any raw tree as a page, without keeping what is prepared on the way. Skipped images are listed, not raised."""
    with tempfile.TemporaryDirectory() as folder:
        write_data_page(page, *prepare(raw, Path(folder) / "prepared", params.model_copy(update={"on_error": "skip"})), params)


def write_data_page(page: Path, data: Prepared, skipped: list[str], params: BreakHis) -> None:
    """Write the HTML page of a prepared data set; skipped images are listed in full."""
    index = data.index
    people = index.groupby("patient")
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "samples.png"
        _samples(picture, data)
        sections = [
            Section("Images by type and magnification", _types_text(index), _types(index)),
            Section("Images as the networks see them", figures=[picture]),
            Section("Images a patient", "Patients by class: mean, smallest and largest number of images.", _per_patient(index)),
            Section("Folds", _folds_text(data, params), _folds(data)),
            Section("What an epoch sees", _sampling_text(params), _sampling(data, params)),
            Section("Stain", STAIN, _stain(data)),
            Section("Missing magnifications", _missing_text(index), _missing(index)),
        ]
        if skipped:
            sections.append(Section(f"{len(skipped)} skipped images", "\n\n".join(skipped)))
        lead = (
            f"{len(index)} images of {len(people)} patients, {(people['class'].first() == 'malignant').sum()} of them malignant."
        )
        write_page(page, "BreakHis: the data set", sections, lead=lead)


def _types_text(index: pd.DataFrame) -> str:
    double = index.groupby("patient")["type"].nunique()
    two = ", ".join(f"{p} ({' and '.join(sorted(set(index['type'][index['patient'] == p])))})" for p in double.index[double > 1])
    return f"Under two types: {two}." if two else ""


def _types(index: pd.DataFrame) -> pd.DataFrame:
    table = pd.crosstab([index["class"], index["type"]], index["magnification"]).reindex(
        columns=list(MAGNIFICATIONS), fill_value=0
    )
    table["images"] = table.sum(axis=1)
    table["patients"] = index.groupby(["class", "type"])["patient"].nunique()
    table = table.sort_index().rename_axis(columns=None).reset_index()
    total = {"class": "all", "type": "", **table[[*MAGNIFICATIONS, "images"]].sum(), "patients": index["patient"].nunique()}
    return pd.concat([table, pd.DataFrame([total])], ignore_index=True)


def _per_patient(index: pd.DataFrame) -> pd.DataFrame:
    counts = index.groupby(["class", "patient", "magnification"]).size().unstack(fill_value=0)
    rows = []
    for name, own in counts.groupby("class"):
        for m in own:
            rows.append((name, m, len(own), own[m].mean(), own[m].min(), own[m].max()))
    return pd.DataFrame(rows, columns=["class", "magnification", "patients", "mean", "smallest", "largest"])


def _folds_text(data: Prepared, params: BreakHis) -> str:
    whose = {"grouped": "Folds by patient, stratified by class", "official": "The data set's own folds"}.get(
        params.split, params.split
    )
    together = data.index["patient"].map(case_number).nunique() < data.index["patient"].nunique()
    notes = "".join(f"\n\n{note}." for note in data.notes)
    letters = " Slides whose numbers differ in letters only (14-22549AB, 14-22549CD) are of one biopsy" if together else ""
    letters += " and stay together." if letters and params.split == "grouped" else "." if letters else ""
    return f"{whose}. A patient stands in one part of a fold.{letters}{notes}"


def _folds(data: Prepared) -> pd.DataFrame:
    own = data.index.groupby("patient").agg(tumour_class=("class", "first"), images=("image", "size")).reset_index()
    joined = data.folds.merge(own, on="patient")
    rows = []
    for (fold, part), group in joined.groupby(["fold", "part"]):
        row: dict[str, object] = {"fold": fold, "part": part, "patients": len(group), "images": group["images"].sum()}
        for name in CLASSES:
            of = group[group["tumour_class"] == name]
            row |= {f"{name} patients": len(of), f"{name} images": of["images"].sum()}
        rows.append(row)
    return pd.DataFrame(rows)


def _sampling_text(params: BreakHis) -> str:
    return (
        f"Share of the training images of fold 0 that an epoch's quadruples use, and that all epochs so far have used (base "
        f"{params.samples}). A patient's images are dealt like cards, each once before one comes again."
    )


def _sampling(data: Prepared, params: BreakHis) -> pd.DataFrame:
    patients = data.rows(data.patients(0, "train"), MAGNIFICATIONS)
    each, so_far = utilisation(patients, params.samples, seed=0, epochs=EPOCHS)
    return pd.DataFrame({"epoch": np.arange(1, EPOCHS + 1), "used in the epoch": each, "used so far": so_far})


STAIN = """Mean colour of the images (0 to 255): how much it differs between patients and within one. Where the first is much
larger, a split by images lets a network recognise patients by their stain."""


def _stain(data: Prepared) -> pd.DataFrame:
    rows = []
    for m in MAGNIFICATIONS:
        own = data.index[data.index["magnification"] == m]
        if own.empty:
            continue
        colours = np.stack([data.images[m][row].mean((0, 1)) for row in own["row"]])
        groups = pd.DataFrame(colours, columns=list("RGB")).groupby(own["patient"].to_numpy())
        between, within = groups.mean().std(), groups.std().mean()
        rows += [(m, c, between[c], within[c]) for c in "RGB"]
    return pd.DataFrame(rows, columns=["magnification", "channel", "SD between patients", "SD within a patient"])


def _missing(index: pd.DataFrame) -> pd.DataFrame | None:
    have = index.groupby("patient")["magnification"].agg(set)
    rows = [
        (p, ", ".join(m for m in MAGNIFICATIONS if m not in own)) for p, own in have.items() if len(own) < len(MAGNIFICATIONS)
    ]
    return pd.DataFrame(rows, columns=["patient", "has no image at"]) if rows else None


def _missing_text(index: pd.DataFrame) -> str:
    return "" if _missing(index) is not None else "None: every patient has images at every magnification."


def _samples(path: Path, data: Prepared) -> None:
    """The first image of each type at each magnification."""
    types: Sequence[str] = [name for name in TYPES if name in set(data.index["type"])]
    figure, axes = new_figure(1.5 * len(MAGNIFICATIONS) + 1.5, 1.3 * len(types) + 0.5, len(types), len(MAGNIFICATIONS))
    for line, name in zip(np.reshape(axes, (len(types), -1)), types, strict=True):
        for axis, m in zip(line, MAGNIFICATIONS, strict=True):
            axis.axis("off")
            own = data.index[(data.index["type"] == name) & (data.index["magnification"] == m)]
            if len(own):
                axis.imshow(data.images[m][own["row"].iloc[0]], aspect=460 / 700)
            axis.set_title(f"{name} {m}" if m == MAGNIFICATIONS[0] else m, fontsize=7)
    save_figure(figure, path)
