"""The data-set page: which studies and patients, how they were acquired, which findings stand together, how they are split."""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from quintet.ct.data import Prepared, prepare
from quintet.ct.figures import montage, views_of
from quintet.ct.metrics import jaccard
from quintet.figures import new_figure, save_figure
from quintet.pages import Section, write_page
from quintet.params import Ct

SAMPLES = 8


def analyze(raw: Path, page: Path, params: Ct) -> None:
    """Describe any raw folder as a page, without keeping what is prepared on the way. Skipped studies are listed, not raised."""
    with tempfile.TemporaryDirectory() as folder:
        write_data_page(page, *prepare(raw, Path(folder) / "prepared", params.model_copy(update={"on_error": "skip"})), params)


def write_data_page(page: Path, data: Prepared, skipped: list[str], params: Ct) -> None:
    """Write the HTML page of a prepared data set; skipped studies are listed in full."""
    index = data.index
    with tempfile.TemporaryDirectory() as folder:
        samples, intensities = Path(folder) / "samples.png", Path(folder) / "intensities.png"
        _samples(samples, data)
        _intensities(intensities, data, params)
        sections = [
            Section("Findings", "Studies by the set of their findings, and part of the split.", _sets(data)),
            Section("Split", _split_text(index, params), _split(data)),
            Section("One study of each set", "Middle slices as the networks' input is stored.", figures=[samples]),
            Section("Patients with several studies", "", _repeats(index)),
            Section("Acquisition", "As the files say; voxel sizes are slices x rows x columns, mm.", _acquisition(index)),
            Section(
                "Intensities",
                f"Stored values: 0 is {params.window[0]:g} HU or less, 255 {params.window[1]:g} HU or more.",
                figures=[intensities],
            ),
        ]
        if skipped:
            sections.append(Section(f"{len(skipped)} skipped studies", "\n\n".join(skipped)))
        lead = f"{len(index)} studies of {index['patient'].nunique()} patients; findings: {', '.join(data.findings)}."
        write_page(page, "Chest CT: the data set", sections, lead=lead)


def _names(data: Prepared) -> pd.Series:
    own = data.index[data.findings]
    return own.apply(lambda row: ", ".join(name for name in data.findings if row[name]) or "none", axis=1)


def _sets(data: Prepared) -> pd.DataFrame:
    table = pd.crosstab(_names(data), data.index["split"]).reindex(columns=["train", "valid", "test"], fill_value=0)
    table["studies"] = table.sum(axis=1)
    table["patients"] = data.index.groupby(_names(data).to_numpy())["patient"].nunique()
    table = table.sort_values("studies", ascending=False).rename_axis(columns=None)
    return table.rename_axis("findings").reset_index()


def _split_text(index: pd.DataFrame, params: Ct) -> str:
    whose = "by patient, stratified by the label set of the first study" if params.split == "grouped" else f"from {params.split}"
    return (
        f"Split {whose}; a patient stands in one part. Chance of relevance: the share of pairs of different patients whose "
        f"findings have a Jaccard similarity above 0. {int(index['train_eval'].sum())} training studies are also measured after "
        "each epoch."
    )


def _split(data: Prepared) -> pd.DataFrame:
    rows = []
    for part in ("train", "valid", "test"):
        own = data.index.iloc[data.rows(part)]
        labels = data.labels[data.rows(part)]
        others = own["patient"].to_numpy()[:, None] != own["patient"].to_numpy()[None]
        relevant = jaccard(labels, labels) > 0
        rows.append(
            {
                "part": part,
                "studies": len(own),
                "patients": own["patient"].nunique(),
                **{name: int(own[name].sum()) for name in data.findings},
                "chance of relevance": float(relevant[others].mean()) if others.any() else np.nan,
            }
        )
    return pd.DataFrame(rows)


def _repeats(index: pd.DataFrame) -> pd.DataFrame:
    counts = index.groupby("patient").size().value_counts().sort_index()
    return pd.DataFrame({"studies of a patient": counts.index, "patients": counts.to_numpy()})


def _acquisition(index: pd.DataFrame) -> pd.DataFrame:
    table = index.assign(
        slice_mm=index["spacing_mm"].str.split(" x ").str[0].astype(float),
        pixel_mm=index["spacing_mm"].str.split(" x ").str[2].astype(float),
    )
    rows = []
    for name, own in table.groupby("format"):
        row: dict[str, object] = {"format": name, "studies": len(own)}
        for column in ("columns", "rows", "slices", "slice_mm", "pixel_mm"):
            row[column.replace("_", ", ")] = f"{own[column].min():g} to {own[column].max():g}"
        rows.append(row)
    return pd.DataFrame(rows)


def _samples(path: Path, data: Prepared) -> None:
    first = _names(data).drop_duplicates().index[:SAMPLES]
    names = _names(data)
    montage(path, [(f"{data.index['study'][row]}\n{names[row]}", views_of(data.volumes[row])) for row in first], "")


def _intensities(path: Path, data: Prepared, params: Ct) -> None:
    figure, axis = new_figure(8, 3.2)
    edges = np.linspace(params.window[0], params.window[1], 65)
    for name, own in data.index.groupby(_names(data).to_numpy()):
        chosen = own.index[:: max(1, len(own) // SAMPLES)]
        counts = sum(np.bincount(data.volumes[row].ravel(), minlength=256)[4:].reshape(63, 4).sum(1) for row in chosen)
        axis.plot(edges[1:-1], counts / np.sum(counts), label=name, linewidth=1)
    axis.set(xlabel="HU (the window's lower end left out)", ylabel="share of voxels", yscale="log")
    axis.legend(fontsize=7)
    save_figure(figure, path)
