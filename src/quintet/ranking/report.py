"""Write a ranking: ranking.csv for machines, ranking.md and ranking.html for people, and two figures."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from quintet.files import atomic_file
from quintet.pages import Section, format_number, write_page
from quintet.ranking.table import Ranking

BLUE, GREY = "#2b6cb0", "#8795a5"


def write(ranking: Ranking, folder: Path, *, title: str, unit: str, extra: Sequence[Section] = ()) -> None:
    """Write ranking.{csv,md,html}, means.png and differences.png into `folder`; `extra` sections end the page's body."""
    figures = [Path(folder) / "means.png", Path(folder) / "differences.png"]
    for path, draw in zip(figures, (_draw_means, _draw_differences), strict=True):
        with atomic_file(path) as beside:
            draw(ranking, title, unit).savefig(beside, dpi=120)
    table, pairs = _readable(ranking.table, ranking), _readable(ranking.pairs, ranking)
    sections = [
        Section("Ranking", _legend(ranking, unit), table),
        Section("Means and intervals", figures=figures[:1]),
        Section("Patient by patient", figures=figures[1:]),
        *extra,
        Section("Pairs", "Difference: first minus second. separated: p after Holm's correction is at most the level.", pairs),
        Section("Verdict", ranking.verdict),
    ]
    write_page(Path(folder) / "ranking.html", title, sections, lead=ranking.verdict)
    with atomic_file(Path(folder) / "ranking.csv") as beside:
        ranking.table.to_csv(beside, index=False, float_format="%.6g")
    with atomic_file(Path(folder) / "ranking.md") as beside:
        pictures = "\n".join(f"![{path.stem}]({path.name})" for path in figures)
        text = [f"# {title}", _legend(ranking, unit), _markdown(table), pictures, *_further(extra), "## Pairs", _markdown(pairs)]
        beside.write_text("\n\n".join(part for part in [*text, "## Verdict", ranking.verdict] if part) + "\n", encoding="utf-8")


def _further(extra: Sequence[Section]) -> Iterable[str]:
    for section in extra:
        yield f"## {section.heading}"
        yield section.text
        if section.table is not None:
            shown = section.table.map(lambda v: "" if pd.isna(v) else format_number(v) if isinstance(v, float) else str(v))
            yield _markdown(shown)
        yield "\n".join(f"![{path.stem}]({path.name})" for path in section.figures)


def _legend(ranking: Ranking, unit: str) -> str:
    level = f"{100 * (1 - ranking.alpha):g} %"
    noise = "not known (no repeated seed)" if ranking.run_sd is None else f"{ranking.run_sd:.3g}"
    tau = "" if ranking.kendall_tau is None else f" Kendall's tau with the published ranking: {ranking.kendall_tau:.2f}."
    return (
        f"{_axis(ranking.metric, unit)}, {'lower' if ranking.lower_is_better else 'higher'} is better. "
        f"Patients: {ranking.patients} (left out: {ranking.patients_dropped}), cases: {ranking.cases}, folds: {ranking.folds}. "
        f"mean: of patient means; low, high: {level} interval over patients and training runs; two configurations that share "
        f"a letter (group) are not separated. Pooled SD between training runs: {noise}.{tau}\n\n"
        f"As description only: rank_low, rank_high ({level}) and first_share (share of first places) come from a bootstrap "
        "over patients and runs. Intervals may overlap where the differences, taken patient by patient, are clear."
    )


def _readable(table: pd.DataFrame, ranking: Ranking) -> pd.DataFrame:
    """Numbers as text: three significant digits of the half-widths fix the decimals of scores; blank is not known."""
    half = (ranking.table["high"] - ranking.table["mean"]).to_numpy()
    half = half[np.isfinite(half) & (half > 0)]
    decimals = int(np.clip(2 - np.floor(np.log10(np.median(half))), 0, 6)) if len(half) else 2
    special = {"p": ".2g", "p_holm": ".2g", "df": ".1f", "first_share": ".2f"}

    def text(value: object, spec: str) -> str:
        if isinstance(value, bool | np.bool_):
            return "yes" if value else "no"
        return str(value) if not isinstance(value, float) else "" if np.isnan(value) else format(value, spec)

    return pd.DataFrame({name: [text(v, special.get(name, f".{decimals}f")) for v in table[name]] for name in table.columns})


def _markdown(table: pd.DataFrame) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(table.columns), line(["---"] * table.shape[1]), *(line(row) for row in table.to_numpy())])


def _axis(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit else name


def _draw_means(ranking: Ranking, title: str, unit: str) -> Figure:
    table, y = ranking.table, np.arange(len(ranking.table))
    figure = Figure(figsize=(8, 1.9 + 0.34 * len(y)), layout="constrained")
    axes = figure.subplots()
    half = (table["high"] - table["mean"]).replace(np.inf, 0)  # one patient: the interval has no end
    label = f"mean, {100 * (1 - ranking.alpha):g} % interval"
    axes.errorbar(table["mean"], y, xerr=half, fmt="o", color=BLUE, capsize=3, label=label)
    if table["published"].notna().any():
        axes.plot(table["published"], y, "D", mfc="none", color=GREY, label="published")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    for at, letters in enumerate(table["group"]):
        axes.text(1.015, at, letters, transform=axes.get_yaxis_transform(), va="center", family="monospace")
    axes.set_yticks(y, list(table["config"]))
    axes.set_ylim(len(y) - 0.5, -0.5)
    better = "lower" if ranking.lower_is_better else "higher"
    axes.set_xlabel(fill(f"{_axis(ranking.metric, unit)}, {better} is better", 60))
    axes.grid(axis="x", alpha=0.3)
    figure.suptitle(f"{title}\nsame letter: not separated ({ranking.patients} patients)", fontsize=11)
    return figure


def _draw_differences(ranking: Ranking, title: str, unit: str) -> Figure:
    """Rows: configurations; columns: patients, in the order of the first configuration's score; blue is always better."""
    table = ranking.by_patient
    first = table.iloc[0].to_numpy()
    table = table.iloc[:, np.argsort(first, kind="stable")]
    gap = table.to_numpy() - table.iloc[0].to_numpy()
    reach = float(np.quantile(np.abs(gap), 0.99)) or 1.0
    figure = Figure(figsize=(9, 2.3 + 0.3 * len(table)), layout="constrained")
    axes = figure.subplots()
    colours = "RdBu_r" if ranking.lower_is_better else "RdBu"
    image = axes.imshow(gap, cmap=colours, vmin=-reach, vmax=reach, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(len(table)), list(table.index))
    few = table.shape[1] <= 40
    axes.set_xticks(range(table.shape[1]) if few else [], list(table.columns) if few else [], rotation=90, fontsize=7)
    axes.set_xlabel(f"patients, by the {ranking.metric} of {table.index[0]} (lowest left)")
    figure.colorbar(image, ax=axes, label=f"difference in {_axis(ranking.metric, unit)}", extend="both")
    figure.suptitle(f"{title}\ndifference from {table.index[0]}, patient by patient (blue: better)", fontsize=11)
    return figure
