"""The data-set page: who has what, how modalities go missing, targets, clinical columns, what the network sees."""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from quintet.figures import new_figure, save_figure
from quintet.fusion.clinical import Numeric
from quintet.fusion.data import Prepared, prepare
from quintet.fusion.figures import montage
from quintet.fusion.segmentation import TABLE, segment
from quintet.pages import Section, write_page
from quintet.params import Fusion

SAMPLES = 6


def analyze(raw: Path, page: Path, params: Fusion) -> None:
    """Describe any raw folder as a page, without keeping what is prepared on the way. What is skipped is listed, not raised."""
    with tempfile.TemporaryDirectory() as folder:
        skipping = params.model_copy(update={"on_error": "skip"})
        masks = Path(folder) / "masks"
        segment(raw, masks, skipping)
        data, problems = prepare(raw, masks, Path(folder) / "prepared", skipping)
        write_data_page(page, data, problems, masks, params)


def write_data_page(page: Path, data: Prepared, skipped: list[str], masks: Path, params: Fusion) -> None:
    """Write the HTML page of a prepared data set; what was skipped is listed in full."""
    with tempfile.TemporaryDirectory() as folder:
        seen, targets = Path(folder) / "seen.png", Path(folder) / "targets.png"
        rows = np.linspace(0, len(data.table) - 1, min(SAMPLES, len(data.table))).astype(int)
        montage(seen, [(str(data.table["patient"][r]), data.volumes[r], data.present[r]) for r in rows], data.modalities[:-1])
        sections = [
            Section(
                "Split and target", "Patients stand in one part each; the split is stratified by the target.", _targets(data)
            ),
            Section("Modalities", "Share of the patients that have each.", _modalities(data)),
            Section("What is there together", "", _patterns(data)),
            Section("Missing, by the clinical row", MAR_TEXT, _missing_by(data)),
            Section("Clinical columns", CLINICAL_TEXT, _clinical(data)),
            Section(
                "Masks",
                f"Segmenter: {params.segmenter}. A mask centres and bounds the cube, and intensities are scaled inside it.",
                _masks(masks),
            ),
            Section("As the networks see them", "Middle slices of each modality's cube.", figures=[seen]),
        ]
        if not data.classes:
            _times(targets, data)
            sections.insert(1, Section("Survival times", figures=[targets]))
        if skipped:
            sections.append(Section(f"{len(skipped)} skipped", "\n\n".join(skipped)))
        lead = f"{len(data.table)} patients, {len(data.modalities) - 1} imaging modalities and a clinical row; {params.task}."
        write_page(page, "Multimodal fusion: the data set", sections, lead=lead)


def _targets(data: Prepared) -> pd.DataFrame:
    if data.classes:
        table = pd.crosstab(data.table["split"], data.table["label"])
    else:
        table = data.table.groupby("split").agg(events=("event", "sum"), median_days=("time", "median"))
    table.insert(0, "patients", data.table.groupby("split").size())
    return table.loc[[p for p in ("train", "valid", "test") if p in table.index]].rename_axis(columns=None).reset_index()


def _modalities(data: Prepared) -> pd.DataFrame:
    rows = []
    for part in ("train", "valid", "test"):
        rows.append({"part": part, **dict(zip(data.modalities, data.present[data.rows(part)].mean(0), strict=True))})
    return pd.DataFrame(rows)


def _patterns(data: Prepared) -> pd.DataFrame:
    names = ["+".join(np.array(data.modalities)[own]) for own in data.present]
    counts = pd.Series(names).value_counts()
    return pd.DataFrame({"modalities": counts.index, "patients": counts.to_numpy()})


MAR_TEXT = """Mean of each standardised clinical number among patients who have a modality, minus that among those who lack it:
values far from 0 say that it is missing by the clinical row, not by chance alone."""


def _missing_by(data: Prepared) -> pd.DataFrame:
    rows, at = [], 0
    for column in data.encoder.columns:
        if isinstance(column, Numeric):
            known = data.clinical[:, at + 1] == 0
            values = data.clinical[known, at]
            row: dict[str, object] = {"column": column.name}
            for k, name in enumerate(data.modalities[:-1]):
                has = data.present[known, k]
                row[name] = float(values[has].mean() - values[~has].mean()) if has.any() and not has.all() else np.nan
            rows.append(row)
        at += 2 if isinstance(column, Numeric) else len(column.values) + 1
    return pd.DataFrame(rows)


CLINICAL_TEXT = (
    """Fitted on the training patients. A missing value, or a category that training did not know, is zero with a flag."""
)


def _clinical(data: Prepared) -> pd.DataFrame:
    rows, at = [], 0
    for column in data.encoder.columns:
        width = 2 if isinstance(column, Numeric) else len(column.values) + 1
        is_number = isinstance(column, Numeric)
        what = f"mean {column.mean:.3g}, SD {column.sd:.3g}" if isinstance(column, Numeric) else ", ".join(column.values)
        rows.append(
            {
                "column": column.name,
                "kind": "number" if is_number else "category",
                "values": what,
                "missing": float(data.clinical[:, at + width - 1].mean()),
            }
        )
        at += width
    return pd.DataFrame(rows, columns=["column", "kind", "values", "missing"])


def _masks(masks: Path) -> pd.DataFrame:
    table = pd.read_csv(masks / TABLE, keep_default_na=False)
    table["failed"] = table["status"] != "ok"
    found = table.groupby(["modality", "segmenter", "task", "version"]).agg(images=("patient", "size"), failed=("failed", "sum"))
    return found.reset_index()


def _times(path: Path, data: Prepared) -> None:
    figure, axis = new_figure(8, 3)
    for event, label in ((1, "event"), (0, "censored")):
        axis.hist(data.table.loc[data.table["event"] == event, "time"], bins=30, alpha=0.6, label=label)
    axis.set(xlabel="days", ylabel="patients")
    axis.legend(fontsize=8)
    save_figure(figure, path)
