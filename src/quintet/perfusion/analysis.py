"""The data page: people, cases and folds, grids, territories, and how much accuracy resampling loses."""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from nibabel.orientations import aff2axcodes

from quintet.pages import Section, write_page
from quintet.params import Perfusion
from quintet.perfusion.data.prepare import prepare
from quintet.perfusion.data.prepared import SIDES, Prepared, centred
from quintet.perfusion.evaluation.figures import Slice, panels
from quintet.perfusion.evaluation.scores import dice_score

MAX_CASES_SHOWN = 6


def analyze(raw: Path, page: Path, params: Perfusion) -> None:
    """Describe a raw folder as a page; the prepared data is not kept. Skipped cases are listed."""
    skipping = params.skipping()
    doubts: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        data, skipped = prepare(raw, Path(folder) / "prepared", skipping, doubts=doubts)
        write_data_page(page, data, skipped, doubts)


def write_data_page(page: Path, data: Prepared, skipped: list[str], doubts: list[str]) -> None:
    """Write the HTML page of a prepared data set; skipped cases and doubts are listed in full."""
    cases = data.table
    with tempfile.TemporaryDirectory() as folder:
        figure = Path(folder) / "cases.png"
        chosen = np.unique(np.linspace(0, len(cases) - 1, MAX_CASES_SHOWN).astype(int))
        panels(
            figure,
            {cases["case"][i]: _fullest(data, int(i)) for i in chosen},
            "Flow maps as the networks see them, territories in green",
        )
        sections = [
            _folds(data),
            _grids(data),
            Section("Cases", figures=[figure]),
            _territories(data),
            Section("Accuracy lost by resampling", ROUND_TRIP, _round_trip(data)),
        ]
        if doubts:
            sections.insert(0, Section(f"{len(doubts)} doubts", "\n\n".join(doubts)))
        if skipped:
            sections.append(Section(f"{len(skipped)} skipped", "\n\n".join(skipped)))
        lead = f"{len(cases)} cases of {cases['subject'].nunique()} people; channels: {', '.join(data.channels)}."
        write_page(page, "Perfusion territories: the data set", sections, lead=lead)


def _fullest(data: Prepared, row: int) -> Slice:
    size = data.geometry[row].size
    masks = centred(np.asarray(data.masks[data.slices(row)]), size).astype(bool)
    level = int(masks.sum((1, 2, 3)).argmax())
    images = centred(np.asarray(data.images[data.slices(row)]), size)
    return Slice(level, images[level, :2], masks[level], np.zeros_like(masks[level]), data.spacing_mm[1] / data.spacing_mm[2])


def _folds(data: Prepared) -> Section:
    rows = []
    for number, fold in enumerate(data.folds):
        held_out = data.table[data.table["case"].isin(fold["val"])]
        people = sorted(held_out["subject"].unique())
        rows.append((number, len(fold["train"]), len(fold["val"]), len(people), ", ".join(people)))
    visits = data.table.groupby("subject").size().value_counts().sort_index()
    text = "All visits of a person are in the same part of a fold. Visits per person: " + ", ".join(
        f"{n} ({k} people)" for n, k in visits.items()
    )
    if unused := len(data.table) - len({name for fold in data.folds for part in fold.values() for name in part}):
        text += f". {unused} cases are in no fold and are not used"
    columns = ["fold", "training cases", "held-out cases", "held-out people", "names"]
    return Section("Folds", f"{text}.", pd.DataFrame(rows, columns=columns))


def _grids(data: Prepared) -> Section:
    table = pd.DataFrame(
        {
            "original grid (x, y, z)": [" x ".join(map(str, g.grid.shape)) for g in data.geometry],
            "spacing, mm (z, y, x)": [" x ".join(f"{round(v, 3):g}" for v in g.grid.spacing_mm) for g in data.geometry],
            "oblique": ["yes" if _oblique(g.grid.affine) else "no" for g in data.geometry],
            "axes": ["".join(aff2axcodes(g.grid.affine)) for g in data.geometry],
        }
    )
    counts = table.value_counts().rename("cases").reset_index()
    sizes = np.array([g.size for g in data.geometry])
    text = (
        f"Prepared: {' x '.join(f'{v:.4g}' for v in data.spacing_mm)} mm (slices, rows, columns; the median), slices of "
        f"{sizes[:, 0].min()} to {sizes[:, 0].max()} x {sizes[:, 1].min()} to {sizes[:, 1].max()} pixels."
    )
    full = sum(np.prod(np.diff(g.box)) == np.prod(g.grid.shape) for g in data.geometry)
    text += f" {full} cases fill their whole grid: check that they are skull-stripped, with 0 outside the brain." if full else ""
    return Section("Grids", text, counts)


def _oblique(affine: np.ndarray) -> bool:
    steps = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(steps).max(0).min() < 0.9999)


def _territories(data: Prepared) -> Section:
    volumes = data.table[[f"{side}_ml" for side in SIDES]]
    within = data.table.groupby("subject")[list(volumes.columns)].std().mean()
    rows = [(side, *volumes[f"{side}_ml"].agg(["mean", "min", "max", "std"]), within[f"{side}_ml"]) for side in SIDES]
    both = np.mean([(t := data.label_masks(i)).all(0).sum() / max(1, t.any(0).sum()) for i in range(len(data.table))])
    columns = ["territory", "mean, ml", "smallest", "largest", "SD over cases", "SD between visits of one person"]
    return Section(
        "Territories",
        f"On average {100 * both:.1f} % of the covered volume belongs to both territories.",
        pd.DataFrame(rows, columns=columns),
    )


ROUND_TRIP = """Dice of each label with itself after resampling to the prepared grid and back: an upper bound for predictions."""


def _round_trip(data: Prepared) -> pd.DataFrame:
    scores = []
    for row, geometry in enumerate(data.geometry):
        masks = centred(np.asarray(data.masks[data.slices(row)]), geometry.size)
        scores.append(
            [dice_score(geometry.to_file(masks[:, i].astype(np.float32)) >= 0.5, data.label_masks(row)[i]) for i in range(2)]
        )
    table = np.array(scores)
    return pd.DataFrame({"territory": SIDES, "mean": table.mean(0).round(4), "lowest": table.min(0).round(4)})
