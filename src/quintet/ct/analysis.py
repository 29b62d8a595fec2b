"""The data page: scans and patients, combinations of findings, split, acquisition and intensities."""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from quintet.ct.data.prepare import prepare
from quintet.ct.data.prepared import Prepared
from quintet.ct.evaluation.figures import middle_slices, montage
from quintet.ct.metrics import jaccard
from quintet.figures import new_figure, save_figure
from quintet.pages import Section, write_page
from quintet.params import Ct

SAMPLES = 8  # scans in the montage, and scans per set of findings in the plot of intensities


def analyze(raw: Path, page: Path, params: Ct) -> None:
    """Describe a raw folder as a page; the prepared data set is temporary. Skipped scans are listed."""
    with tempfile.TemporaryDirectory() as folder:
        data, skipped = prepare(raw, Path(folder) / "prepared", params.skipping())
        write_data_page(page, data, skipped, params)


def write_data_page(page: Path, data: Prepared, skipped: list[str], params: Ct) -> None:
    """Write the HTML page of a prepared data set; skipped scans are listed in full."""
    table = data.table
    low, high = params.data.window
    with tempfile.TemporaryDirectory() as folder:
        samples, intensities = Path(folder) / "samples.png", Path(folder) / "intensities.png"
        _plot_samples(samples, data)
        _plot_intensities(intensities, data, params)
        sections = [
            Section("Findings", "Number of scans by set of findings and part of the split.", _label_sets(data)),
            Section("Split", _split_text(table, params), _split(data)),
            Section("One scan of each set", "Middle slices of the stored cubes, the input of the networks.", figures=[samples]),
            Section("Patients with several scans", "", _scans_per_patient(table)),
            Section("Acquisition", "According to the files: spacing in mm, ranges over all scans.", _acquisition(table)),
            Section(
                "Intensities",
                f"Stored values: 0 is {low:g} HU or less, 255 is {high:g} HU or more.",
                figures=[intensities],
            ),
        ]
        if skipped:
            sections.append(Section(f"{len(skipped)} skipped scans", "\n\n".join(skipped)))
        lead = f"{len(table)} scans of {table['patient'].nunique()} patients; findings: {', '.join(data.findings)}."
        write_page(page, "Chest CT: the data set", sections, lead=lead)


def _set_names(data: Prepared) -> pd.Series:
    """Each scan's findings as text."""
    own = data.table[data.findings]
    return own.apply(lambda row: ", ".join(name for name in data.findings if row[name]) or "none", axis=1)


def _label_sets(data: Prepared) -> pd.DataFrame:
    names = _set_names(data)
    table = pd.crosstab(names, data.table["split"]).reindex(columns=["train", "valid", "test"], fill_value=0)
    table["scans"] = table.sum(axis=1)
    table["patients"] = data.table.groupby(names.to_numpy())["patient"].nunique()
    table = table.sort_values("scans", ascending=False).rename_axis(columns=None)
    return table.rename_axis("findings").reset_index()


def _split_text(table: pd.DataFrame, params: Ct) -> str:
    split = params.data.split
    source = "by patient, stratified by the findings of the first scan" if split == "grouped" else f"from {split}"
    return (
        f"Split {source}; all scans of a patient are in the same part. Chance of relevance: the share of pairs of scans of "
        "different patients whose findings have a Jaccard similarity above 0. "
        f"{int(table['train_eval'].sum())} training scans are also evaluated after each epoch."
    )


def _split(data: Prepared) -> pd.DataFrame:
    rows = []
    for part in ("train", "valid", "test"):
        table = data.table.iloc[data.rows(part)]
        labels = data.labels[data.rows(part)]
        different = table["patient"].to_numpy()[:, None] != table["patient"].to_numpy()[None]
        relevant = jaccard(labels, labels) > 0
        rows.append(
            {
                "part": part,
                "scans": len(table),
                "patients": table["patient"].nunique(),
                **{name: int(table[name].sum()) for name in data.findings},
                "chance of relevance": float(relevant[different].mean()) if different.any() else np.nan,
            }
        )
    return pd.DataFrame(rows)


def _scans_per_patient(table: pd.DataFrame) -> pd.DataFrame:
    counts = table.groupby("patient").size().value_counts().sort_index()
    return pd.DataFrame({"scans per patient": counts.index, "patients": counts.to_numpy()})


def _acquisition(table: pd.DataFrame) -> pd.DataFrame:
    spacing = table["spacing_mm"].str.split(" x ", expand=True).astype(float)
    table = table.assign(slice_spacing=spacing[0], pixel_spacing=spacing[2])
    rows = []
    for name, own in table.groupby("format"):
        row: dict[str, object] = {"format": name, "scans": len(own)}
        for column in ("columns", "rows", "slices", "slice_spacing", "pixel_spacing"):
            row[column.replace("_", " ")] = f"{own[column].min():g} to {own[column].max():g}"
        rows.append(row)
    return pd.DataFrame(rows)


def _plot_samples(path: Path, data: Prepared) -> None:
    names = _set_names(data)
    first = names.drop_duplicates().index[:SAMPLES]
    montage(path, [(f"{data.table['study'][row]}\n{names[row]}", middle_slices(data.volumes[row])) for row in first], "")


def _plot_intensities(path: Path, data: Prepared, params: Ct) -> None:
    figure, axis = new_figure(8, 3.2)
    low, high = params.data.window
    edges = np.linspace(low, high, 65)
    for name, own in data.table.groupby(_set_names(data).to_numpy()):
        chosen = own.index[:: max(1, len(own) // SAMPLES)]
        counts = sum(np.bincount(data.volumes[row].ravel(), minlength=256)[4:].reshape(63, 4).sum(1) for row in chosen)
        axis.plot(edges[1:-1], counts / np.sum(counts), label=name, linewidth=1)
    axis.set(xlabel="HU (without the lower end of the window)", ylabel="share of voxels", yscale="log")
    axis.legend(fontsize=7)
    save_figure(figure, path)
