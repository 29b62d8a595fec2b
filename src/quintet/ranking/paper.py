"""A ranking for a paper: the paragraph on statistical methods, and the table in LaTeX."""

from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from quintet.ranking.decision import Decision
from quintet.ranking.scores import Scores
from quintet.ranking.verdict import count

if TYPE_CHECKING:
    from quintet.ranking.table import Ranking

JACKKNIFE = (
    "A patient's score depends on the other patients, so each patient entered with a jackknife pseudo-value, which contains the "
    "patient's effect on all others (Efron and Stein 1981)."
)
NAMED = {"~": "asciitilde", "^": "asciicircum", "\\": "backslash", "|": "bar", "<": "less", ">": "greater"}
ESCAPED = {c: f"\\{c}" for c in "&%$#_{}"} | {c: f"\\text{name}{{}}" for c, name in NAMED.items()}


def methods(scores: Scores, decision: Decision, *, label: str, alpha: float, paired_runs: bool, note: str, bounded: bool) -> str:
    """What a statistical reviewer asks for: estimand, model, correction, software. `note`: on the metric."""
    runs = decision.run_df > 0
    if decision.folds > 1:
        scope = "over patients like these, over repeated training, and over training sets like these"
    elif runs:
        scope = "over patients like these and over repeated training on this training set"
    elif scores.deterministic.all():
        scope = "over patients like these, for deterministic training on this training set"
    else:
        scope = "over patients like these, for the models that were trained (training was not repeated)"
    sources = [name for name, used in (("repeated seeds", runs), ("folds", decision.folds > 1)) if used]
    families = f"all pairs of configurations ({len(decision.pairs.p)})"
    if planned := len(decision.planned.p):
        families = f"the planned comparisons ({planned}) and, separately, {families}"
    needed = f"{decision.pairs.patients_needed} patients"
    if planned:
        needed += f" (planned comparisons: {decision.planned.patients_needed})"
    confidence = f"{100 * (1 - alpha):g} %"
    sentences = [
        f"Configurations were compared by {label} on {count(decision.patients, 'patient')} ({count(scores.cases, 'case')}); "
        f"cases of a patient were averaged first. The estimand is the difference between two configurations' expected scores "
        f"{scope}.",
        *([note] if note else []),
        "Differences were taken patient by patient and tested with a two-sided paired t test.",
    ]
    if sources:
        sentences.append(
            "The squared standard error is the variance of the paired differences divided by the number of patients, plus, for "
            "both configurations, the variance of what the patients of a fold share (training run and training set) divided by "
            "the number of folds: the larger of the configuration's own and the pooled estimate from "
            f"{' and '.join(sources)}, with Satterthwaite's degrees of freedom (1946)."
        )
    if paired_runs:
        sentences.append("Configurations that share weights or start from each other's were compared run by run.")
    scale = " on the logit scale (delta method)" if bounded else ""
    packages = ", ".join(f"{name} {version(package)}" for name, package in (("NumPy", "numpy"), ("SciPy", "scipy")))
    sentences += [
        f"p-values were corrected by Holm's method (1979) over {families}, at the {100 * alpha:g} % level; no difference was "
        f"called significant with fewer than {needed}, the smallest number with which a sign test could be.",
        f"Intervals of means are {confidence} intervals{scale}; those of single differences are not corrected.",
        f"Software: Quintet {version('quintet')}, {packages}.",
    ]
    return " ".join(sentences)


def latex(ranking: "Ranking", *, title: str, unit: str) -> str:
    """A table for the package booktabs: means with intervals, letters, and the rule in a footnote."""
    table = ranking.with_ceiling()
    published = bool(table["published"].notna().any())
    half = (table["high"] - table["mean"])[lambda h: np.isfinite(h) & (h > 0)]
    decimals = int(np.clip(1 - np.floor(np.log10(half.median())), 0, 6)) if len(half) else 3
    heading = ["Configuration", f"{ranking.label}{f' ({unit})' if unit else ''}", f"{100 * (1 - ranking.alpha):g} % interval"]
    rows = [[*heading, "Group", "Runs", *["Published"] * published]]
    for row in table.to_dict("records"):
        mean, low, high = (f"{row[name]:.{decimals}f}" for name in ("mean", "low", "high"))
        interval = f"{low} to {high}" if np.isfinite(row["low"]) else "unknown"
        if row["config"] == ranking.ceiling:
            rows.append([str(row["config"]), mean, *[""] * (3 + published)])
            continue
        cells = [str(row["config"]), mean, interval, str(row["group"]), str(row["runs"])]
        rows.append(cells + ([f"{row['published']:.{decimals}f}" if row["published"] == row["published"] else ""] * published))
    # {}: a name that begins with [ or * would be an argument of the line before
    lines = ["{}" + " & ".join(map(_escape, row)) + r" \\" for row in rows]
    runs = " with the variance between training runs" * ranking.varies_over.endswith("runs")
    better = "lower" if ranking.lower_is_better else "higher"
    footnote = (
        f"Mean over {count(ranking.patients, 'patient')}, {better} is better. Configurations that share a letter are not "
        f"significantly different (two-sided paired t test{runs}, Holm's correction over "
        f"{count(len(ranking.pairs), 'pair')}, {100 * ranking.alpha:g} %).{ranking.caveat}"
    )
    if ranking.ceiling:
        footnote += f" {ranking.ceiling}: what the data allow at best; not compared."
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escape(title)}}}",
            rf"\begin{{tabular}}{{lrrlr{'r' * published}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            rf"\par\smallskip\begin{{minipage}}{{\linewidth}}\footnotesize {_escape(footnote)}\end{{minipage}}",
            r"\end{table}",
            "",
        ]
    )


def _escape(text: str) -> str:
    return "".join(ESCAPED.get(c, c) for c in text)
