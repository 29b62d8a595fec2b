"""Write a ranking: tables for programs, ranking.md and ranking.html for readers, ranking.tex and methods.md for a paper, and two
figures, each as PNG and as PDF."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from quintet.files import atomic_file
from quintet.pages import Section, format_cell, write_page
from quintet.ranking.paper import latex
from quintet.ranking.questions import shown_answers
from quintet.ranking.table import Ranking

BLUE, GREY = "#2b6cb0", "#8795a5"


def write(ranking: Ranking, folder: Path, *, title: str, unit: str, extra: Sequence[Section] = ()) -> None:
    """Write ranking.{csv,md,html,tex}, planned.csv, methods.md and the figures means and differences into `folder`; `extra`
    sections follow the figures."""
    figures = [Path(folder) / "means.png", Path(folder) / "differences.png"]
    for path, plot in zip(figures, (_plot_means, _plot_differences), strict=True):
        figure = plot(ranking, *_literal([title, unit]))
        with atomic_file(path) as temporary:
            figure.savefig(temporary, dpi=120)
        with atomic_file(path.with_suffix(".pdf")) as temporary:
            figure.savefig(temporary, metadata={"CreationDate": None})
    sections = [
        *([_planned(ranking)] if len(ranking.answers) else []),
        Section("Ranking", _ranking_text(ranking, unit), _as_text(_shown(ranking), ranking), lead=ranking.verdict),
        Section("Means and intervals", figures=figures[:1]),
        Section("Patient by patient", ranking.note, figures=figures[1:]),
        *extra,
        Section("Pairs", _pairs_text(ranking), _as_text(_shown_pairs(ranking), ranking)),
        Section("Verdict", ranking.verdict),
    ]
    write_page(Path(folder) / "ranking.html", title, sections)
    for name, table in (("ranking.csv", ranking.with_ceiling()), ("planned.csv", ranking.answers)):
        with atomic_file(Path(folder) / name) as temporary:
            table.to_csv(temporary, index=False, float_format="%.6g")
    texts = {
        "ranking.md": "\n\n".join([f"# {title}", *_markdown(sections)]) + "\n",
        "ranking.tex": latex(ranking, title=title, unit=unit),
        "methods.md": f"{ranking.methods}\n",
    }
    for name, text in texts.items():
        with atomic_file(Path(folder) / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _planned(ranking: Ranking) -> Section:
    text = (
        f"Gains in {ranking.label}; positive means better. p-values are corrected for these {len(ranking.answers)} comparisons "
        f"(Holm), intervals are not.{ranking.caveat}"
    )
    return Section("Planned comparisons", text, shown_answers(ranking.answers))


def _markdown(sections: Iterable[Section]) -> Iterator[str]:
    for section in sections:
        yield f"## {section.heading}"
        if section.text:
            yield section.text
        if section.table is not None:
            yield _markdown_table(section.table)
        if section.figures:
            yield "\n".join(f"![{path.stem}]({path.name})" for path in section.figures)


def _markdown_table(table: pd.DataFrame) -> str:
    # Not DataFrame.to_markdown: it pads columns, so that one longer cell changes every line of a committed report, and it needs
    # tabulate, which by default reformats numbers in text.
    cells = table.map(format_cell).to_numpy()
    rows = [list(map(str, table.columns)), ["---"] * table.shape[1], *([c.replace("|", "\\|") for c in row] for row in cells)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _ranking_text(ranking: Ranking, unit: str) -> str:
    confidence = f"{100 * (1 - ranking.alpha):g} %"
    run_sd = "unknown" if ranking.run_sd is None else f"{ranking.run_sd:.3g}"
    count, tau = ranking.table["published"].notna().sum(), ""
    if ranking.kendall_tau is not None:
        tau = f" Kendall's tau with the published ranking of {count} configurations: {ranking.kendall_tau:.2f}."
    return (
        f"Metric: {_with_unit(ranking.label, unit)}; {'lower' if ranking.lower_is_better else 'higher'} is better. "
        f"Patients: {ranking.patients} (excluded: {ranking.patients_excluded}), cases: {ranking.cases}, folds: {ranking.folds}. "
        f"mean: mean of the patient means; low, high: its {confidence} interval over {ranking.varies_over}; group: "
        "configurations that share a letter are not significantly different; mean_over_cases: the mean over cases; patient_sd, "
        "run_sd: SD over patients, and between training runs (empty: not measured; 0 where training is deterministic); "
        "runs: trained models. "
        f"SD between training runs, pooled: {run_sd} (without the noise of single patients, so that 0 means: not distinguishable "
        f"from 0).{tau}\n\n{_limits(ranking)}"
        f"Descriptive only: rank_low, rank_high ({confidence} interval of the rank) and first_share (share of first places) come "
        f"from a bootstrap over {ranking.varies_over}. The intervals of two means may overlap even where their difference, taken "
        "patient by patient, is significant."
    )


def _limits(ranking: Ranking) -> str:
    """The paragraph on floor and ceiling; empty where one of them is unknown."""
    if ranking.table["covered"].isna().all():
        return ""
    return (
        f"covered: the share of the way from {ranking.floor}, a trivial method, to {ranking.ceiling}, which shows how good a "
        "method can be on these data because it knows how they were generated. It takes part in no comparison.\n\n"
    )


def _shown(ranking: Ranking) -> pd.DataFrame:
    """The table for readers, without columns that are empty."""
    return ranking.with_ceiling().dropna(axis="columns", how="all")


def _shown_pairs(ranking: Ranking) -> pd.DataFrame:
    return ranking.pairs if ranking.pairs["run_by_run"].any() else ranking.pairs.drop(columns="run_by_run")


def _pairs_text(ranking: Ranking) -> str:
    related = " run_by_run: the two share weights, and were compared by the differences between their runs."
    return (
        "difference: first minus second; se, df: its standard error and the degrees of freedom; p: of this pair alone; "
        f"p_holm: after Holm's correction; significant: p_holm is at most {ranking.alpha:g}, with at least "
        f"{ranking.patients_needed} patients; "
        f"patient_sd: SD of the differences between patients.{related if ranking.pairs['run_by_run'].any() else ''}"
    )


def _as_text(table: pd.DataFrame, ranking: Ranking) -> pd.DataFrame:
    """Format numbers: scores get as many decimals as show three digits of the median half-width; unknown values stay blank."""
    half_widths = (ranking.table["high"] - ranking.table["mean"]).to_numpy()
    half_widths = half_widths[np.isfinite(half_widths) & (half_widths > 0)]
    decimals = int(np.clip(2 - np.floor(np.log10(np.median(half_widths))), 0, 6)) if len(half_widths) else 2
    formats = {"p": ".2g", "p_holm": ".2g", "df": ".1f", "first_share": ".2f", "covered": ".2f"}

    def as_text(value: object, spec: str) -> str:
        if isinstance(value, bool | np.bool_):
            return "yes" if value else "no"
        return "" if pd.isna(value) else format(value, spec) if isinstance(value, float) else str(value)

    return pd.DataFrame({name: [as_text(v, formats.get(name, f".{decimals}f")) for v in table[name]] for name in table.columns})


def _with_unit(label: str, unit: str) -> str:
    return f"{label} ({unit})" if unit else label


def _literal(names: Iterable[str]) -> list[str]:
    """Matplotlib would read text between dollar signs as mathematics."""
    return [str(name).replace("$", r"\$") for name in names]


def _plot_means(ranking: Ranking, title: str, unit: str) -> Figure:
    table, y = ranking.table, np.arange(len(ranking.table))
    figure = Figure(figsize=(8, 1.9 + 0.34 * len(y)), layout="constrained")
    axes = figure.subplots()
    errors = np.stack([table["mean"] - table["low"], table["high"] - table["mean"]])
    errors[~np.isfinite(errors)] = 0  # the interval of a single patient is unbounded
    label = f"mean, {100 * (1 - ranking.alpha):g} % interval"
    axes.errorbar(table["mean"], y, xerr=errors, fmt="o", color=BLUE, capsize=3, label=label)
    if ranking.ceiling:
        axes.axvline(ranking.ceiling_mean, color=GREY, linestyle="--", label=_literal([ranking.ceiling])[0])
    if table["published"].notna().any():
        axes.plot(table["published"], y, "D", mfc="none", color=GREY, label="published")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    for position, letters in enumerate(table["group"]):
        axes.text(1.015, position, letters, transform=axes.get_yaxis_transform(), va="center", family="monospace")
    axes.set_yticks(y, _literal(table["config"]))
    axes.set_ylim(len(y) - 0.5, -0.5)
    better = "lower" if ranking.lower_is_better else "higher"
    axes.set_xlabel(fill(f"{_with_unit(_literal([ranking.label])[0], unit)}, {better} is better", 75))
    axes.grid(axis="x", alpha=0.3)
    figure.suptitle(f"{title}\nsame letter: not significantly different ({ranking.patients} patients)", fontsize=11)
    return figure


def _plot_differences(ranking: Ranking, title: str, unit: str) -> Figure:
    """Rows: configurations; columns: patients, sorted by the score of the first configuration; blue is always better."""
    table = ranking.by_patient
    first = table.iloc[0].to_numpy()
    table = table.iloc[:, np.argsort(first, kind="stable")]
    difference = table.to_numpy() - table.iloc[0].to_numpy()
    limit = float(np.quantile(np.abs(difference), 0.99)) or 1.0
    figure = Figure(figsize=(9, 2.3 + 0.3 * len(table)), layout="constrained")
    axes = figure.subplots()
    colours = "RdBu_r" if ranking.lower_is_better else "RdBu"
    image = axes.imshow(difference, cmap=colours, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(len(table)), _literal(table.index))
    names = _literal(table.columns) if table.shape[1] <= 40 else []
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    first_name = _literal(table.index)[0]
    axes.set_xlabel(f"patients, sorted by their score with {first_name} (lowest on the left)")
    figure.colorbar(
        image, ax=axes, label=fill(f"difference in {_with_unit(_literal([ranking.label])[0], unit)}", 40), extend="both"
    )
    figure.suptitle(f"{title}\ndifference from {first_name}, patient by patient (blue: better)", fontsize=11)
    return figure
