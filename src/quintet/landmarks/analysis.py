"""The data page: what the data contains, how it is split, and what limits the accuracy of predictions."""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from quintet import splits
from quintet.landmarks.data.anatomy import DISTANCES, NAMES, PIXELS, project_on_template, to_pixels
from quintet.landmarks.data.prepare import prepare
from quintet.landmarks.data.prepared import Prepared
from quintet.landmarks.evaluation.figures import overlays
from quintet.pages import Section, write_page
from quintet.params import Landmarks

GRIDS = range(32, 257)
SQUARE_MEAN = 0.3826  # mean distance of a uniform point in a unit square from its centre


def analyze(raw: Path, page: Path, params: Landmarks) -> None:
    """Describe a raw folder as a page; the prepared data is not kept. Skipped rows are listed."""
    with tempfile.TemporaryDirectory() as folder:
        write_data_page(page, *prepare(raw, Path(folder) / "prepared", params.skipping()))


def write_data_page(page: Path, data: Prepared, skipped: list[str]) -> None:
    """Write the HTML page of a prepared data set; skipped rows are listed in full."""
    cases = data.table
    sections = [_split_section(cases), _limits_section(data), _duplicates_section(data)]
    sections.append(Section("Landmark positions", f"Mean and SD over all images, in pixels at {PIXELS}.", _positions(data)))
    with tempfile.TemporaryDirectory() as folder:
        shown = np.concatenate([rows.index[:4] for _, rows in cases.groupby("category")])
        figure = Path(folder) / "samples.png"
        points = data.points[shown]
        overlays(figure, data.images[shown], points, points, list(cases["stem"].iloc[shown]), "The first images of each category")
        sections.insert(1, Section("Images as the networks see them", figures=[figure]))
        if skipped:
            sections.append(Section(f"{len(skipped)} skipped rows", "\n\n".join(skipped)))
        lead = f"{len(cases)} images in {cases['category'].nunique()} categories, probably of {cases['group'].nunique()} people."
        write_page(page, "Chest X-ray landmarks: the data set", sections, lead=lead)


def _split_section(cases: pd.DataFrame) -> Section:
    table = (
        pd.crosstab(cases["category"], cases["split"], margins=True, margins_name="all")[[*splits.PARTS, "all"]]
        .rename_axis(columns=None)
        .reset_index()
    )
    sizes = ", ".join(f"{w} x {h} ({n})" for (w, h), n in cases[["width", "height"]].value_counts().items())
    return Section("Images per category and part", f"Original sizes in pixels: {sizes}.", table)


def _positions(data: Prepared) -> pd.DataFrame:
    pixels = data.points * PIXELS
    columns = {f"{axis} {name}": getattr(pixels[..., i], name)(axis=0) for i, axis in enumerate("xy") for name in ("mean", "std")}
    return pd.DataFrame({"landmark": [f"{k} {name}" for k, name in enumerate(NAMES)], **columns})


def label_grid(points_px: np.ndarray, sides: np.ndarray) -> int | None:
    """The smallest n for which all coordinates `[N, 15, 2]` are rounded multiples of side / n; None above 256."""
    for n in GRIDS:
        k = np.round(points_px * n / sides)
        if (np.abs(np.round(k * sides / n) - points_px) < 0.5 + 1e-6).all():
            return n
    return None


def _limits_section(data: Prepared) -> Section:
    sizes = data.table[["width", "height"]].to_numpy(float)
    grid = label_grid(to_pixels(data.points, sizes), np.broadcast_to(sizes[:, None], data.points.shape))
    rows = [("mean distance to the mean shape", np.linalg.norm(data.points - data.points.mean(0), axis=-1).mean() * PIXELS)]
    if grid and grid < int(sizes.min()):
        rows.append((f"rounding of the labels to a grid of {grid} x {grid} (mean)", SQUARE_MEAN * PIXELS / grid))
    residual = np.linalg.norm(project_on_template(data.points, sizes) - data.points, axis=-1)
    rows.append(("distance of the labels from the annotation template (mean)", residual.mean() * PIXELS))
    spans = [np.linalg.norm(data.points[:, a] - data.points[:, b], axis=-1) for a, b in DISTANCES]
    rows.append(("SD of the distance from mediastinum top to bottom", spans[0].std() * PIXELS))
    same = pairs(data)
    if same:
        difference = np.mean([np.linalg.norm(data.points[a] - data.points[b], axis=-1).mean() for a, b in same]) * PIXELS
        rows.append((f"difference between the labels of near-duplicates ({len(same)} pairs, mean)", difference))
    return Section("What limits the error", f"In pixels at {PIXELS}.", pd.DataFrame(rows, columns=["limit", "px"]))


def pairs(data: Prepared) -> list[tuple[int, int]]:
    """Pairs of row numbers: consecutive members of each near-duplicate group."""
    found = []
    for _, rows in data.table.groupby("group"):
        found += list(zip(rows.index[:-1], rows.index[1:], strict=True))
    return found


def _duplicates_section(data: Prepared) -> Section:
    cases = data.table
    table = cases.groupby("group").filter(lambda rows: len(rows) > 1)
    table = (
        table.groupby("group").agg(images=("stem", ", ".join), parts=("split", lambda s: ", ".join(sorted(set(s))))).reset_index()
    )
    across = splits.leaks(list(cases["split"]), list(cases["group"]))
    text = f"Groups of images with nearly equal perceptual hashes: {len(table)}, {len(across)} of them in more than one part."
    return Section("Near-duplicates", text, table if len(table) else None)
