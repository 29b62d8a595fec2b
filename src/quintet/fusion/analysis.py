"""The data page: split and targets, how modalities are missing, clinical features, masks, and cubes as the network gets them."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from quintet.figures import new_figure, save_figure
from quintet.fusion.data.clinical import Category, Numeric
from quintet.fusion.data.prepare import prepare
from quintet.fusion.data.prepared import EXTERNAL, UNLABELLED, Prepared
from quintet.fusion.data.segmentation import TABLE, segment
from quintet.fusion.evaluation.figures import montage
from quintet.pages import Section, write_page
from quintet.params import Fusion

MAX_PATIENTS_SHOWN = 6
PARTS = ("train", "valid", "test", UNLABELLED, EXTERNAL)


def analyze(raw: Path, page: Path, params: Fusion) -> None:
    """Describe a raw folder as a page; the prepared data is not kept. Skipped images and patients are listed."""
    skipping = params.skipping()
    with tempfile.TemporaryDirectory() as folder:
        masks = Path(folder) / "masks"
        segment(raw, masks, skipping)
        data, skipped = prepare(raw, masks, Path(folder) / "prepared", skipping)
        write_data_page(page, data, skipped, skipping, masks=masks)


def write_data_page(page: Path, data: Prepared, skipped: list[str], params: Fusion, *, masks: Path) -> None:
    """Write the HTML page of a prepared data set; skipped images and patients are listed in full."""
    with tempfile.TemporaryDirectory() as folder:
        cubes, times = Path(folder) / "cubes.png", Path(folder) / "times.png"
        rows = np.linspace(0, len(data.table) - 1, min(MAX_PATIENTS_SHOWN, len(data.table))).astype(int)
        images, vectors = data.preparation.modalities, data.preparation.vectors
        if images:
            montage(cubes, [(str(data.table["patient"][r]), data.volumes[r], data.present[r]) for r in rows], data.preparation)
        segmenter = params.segmentation.segmenter
        sections = [
            Section("Split and target", "Each patient is in one part; the split is stratified by the target.", _targets(data)),
            Section("Modalities", "Share of the patients that have each modality.", _modalities(data)),
            Section("Combinations of modalities", "", _combinations(data)),
            Section("Missing modalities and clinical features", MISSING_TEXT, _clinical_differences(data)),
            Section("Clinical features", CLINICAL_TEXT, _clinical(data)),
        ]
        if images:
            sections += [
                Section("Masks", MASKS_TEXT.format(segmenter=segmenter), _masks(masks)),
                Section("Cubes as the networks see them", "Middle slices of each modality's cube.", figures=[cubes]),
            ]
        if vectors:
            sections.append(Section("Vectors", VECTORS_TEXT, _vectors(data)))
        if not data.classes:
            _plot_times(times, data)
            sections.insert(1, Section("Survival times", figures=[times]))
        if skipped:
            sections.append(Section(f"{len(skipped)} skipped", "\n\n".join(skipped)))
        kinds = f"{len(images)} imaging modalities" + f", {len(vectors)} tables of numbers" * bool(vectors)
        lead = f"{len(data.table)} patients, {kinds} and clinical features; {params.data.task}."
        write_page(page, "Multimodal fusion: the data set", sections, lead=lead)


def _targets(data: Prepared) -> pd.DataFrame:
    if data.classes:
        table = pd.crosstab(data.table["split"], data.table["label"])
    else:
        table = data.table.groupby("split").agg(events=("event", "sum"), median_days=("time", "median"))
    table.insert(0, "patients", data.table.groupby("split").size())
    return table.loc[[p for p in PARTS if p in table.index]].rename_axis(columns=None).reset_index()


def _modalities(data: Prepared) -> pd.DataFrame:
    parts = [part for part in PARTS if len(data.rows(part))]
    shares = [data.present[data.rows(part)].mean(0) for part in parts]
    return pd.DataFrame(shares, columns=data.modalities).assign(part=parts)[["part", *data.modalities]]


VECTORS_TEXT = """Tables of numbers, fitted on the training patients: used columns (those without spread are left out), and the
principal components that the networks get."""


def _vectors(data: Prepared) -> pd.DataFrame:
    return pd.DataFrame(
        [(name, len(e.columns), e.width) for name, e in data.vector_encoders.items()],
        columns=["modality", "columns", "components"],
    )


def _combinations(data: Prepared) -> pd.DataFrame:
    names = ["+".join(np.array(data.modalities)[present]) for present in data.present]
    counts = pd.Series(names).value_counts()
    return pd.DataFrame({"modalities": counts.index, "patients": counts.to_numpy()})


def _clinical_columns(data: Prepared) -> Iterator[tuple[Numeric | Category, np.ndarray]]:
    """Each clinical column with its encoded features `[N, width]`; the last one is the flag for missing values."""
    start = 0
    for column in data.encoder.columns:
        yield column, data.clinical[:, start : start + column.width]
        start += column.width


MISSING_TEXT = """The mean of each standardised clinical number in patients who have a modality, minus the mean in patients who
lack it. Values far from 0 mean that the modality is not missing completely at random, but depends on the clinical features."""


def _clinical_differences(data: Prepared) -> pd.DataFrame:
    rows = []
    for column, features in _clinical_columns(data):
        if isinstance(column, Numeric):
            known = features[:, -1] == 0
            values = features[known, 0]
            row: dict[str, object] = {"column": column.name}
            for k, name in enumerate(data.modalities[:-1]):
                has = data.present[known, k]
                row[name] = float(values[has].mean() - values[~has].mean()) if has.any() and not has.all() else np.nan
            rows.append(row)
    return pd.DataFrame(rows)


CLINICAL_TEXT = """Fitted on the training patients. A missing value, or a category that does not occur in training, is encoded as
zeros and a flag."""


def _clinical(data: Prepared) -> pd.DataFrame:
    rows = []
    for column, features in _clinical_columns(data):
        number = isinstance(column, Numeric)
        values = f"mean {column.mean:.3g}, SD {column.sd:.3g}" if isinstance(column, Numeric) else ", ".join(column.values)
        rows.append((column.name, "number" if number else "category", values, float(features[:, -1].mean())))
    return pd.DataFrame(rows, columns=["column", "kind", "values", "missing"])


MASKS_TEXT = """Segmenter: {segmenter}. The cube is centred on the masks and as large as they are; intensities are scaled by the
percentiles inside them."""


def _masks(masks: Path) -> pd.DataFrame:
    table = pd.read_csv(masks / TABLE, keep_default_na=False)
    table["failed"] = table["status"] != "ok"
    counts = table.groupby(["modality", "segmenter", "task", "version"]).agg(images=("patient", "size"), failed=("failed", "sum"))
    return counts.reset_index()


def _plot_times(path: Path, data: Prepared) -> None:
    figure, axis = new_figure(8, 3)
    for event, label in ((1, "event"), (0, "censored")):
        axis.hist(data.table.loc[data.table["event"] == event, "time"], bins=30, alpha=0.6, label=label)
    axis.set(xlabel="days", ylabel="patients")
    axis.legend(fontsize=8)
    save_figure(figure, path)
