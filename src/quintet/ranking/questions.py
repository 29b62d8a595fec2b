"""Comparisons that a study declares before it is measured: a family of their own, each answered in one sentence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from quintet.ranking.decision import Family
from quintet.ranking.variance import Floats
from quintet.ranking.verdict import count

SMALL_P = 0.001
COLUMNS = ["question", "gain", "low", "high", "df", "p", "p_holm", "significant", "verdict", "answer"]


@dataclass(frozen=True)
class Question:
    """`weights`: configuration -> weight. "Yes" means that the weighted sum of the configurations' scores is better than 0."""

    text: str
    weights: Mapping[str, float]


def is_better(first: str, second: str) -> Question:
    return Question(f"Is {first} better than {second}?", {first: 1.0, second: -1.0})


def answerable(questions: Sequence[Question], configs: Sequence[str]) -> tuple[list[Question], Floats]:
    """The questions about these configurations only, and their weights [questions, configs]."""
    kept = [q for q in questions if set(q.weights) <= set(configs)]
    return kept, np.array([[q.weights.get(c, 0.0) for c in configs] for q in kept]).reshape(len(kept), len(configs))


def answer(questions: Sequence[Question], family: Family, *, patients: int, sign: float, alpha: float) -> pd.DataFrame:
    """One row per question. gain: the difference, positive if better; low, high: its interval, for this question alone; answer: a
    sentence that repeats the question. `sign` is 1 where lower scores are better, -1 where higher ones are."""
    gain, half = np.where(family.difference == 0, 0.0, -sign * family.difference), family.half_width(alpha)
    table = pd.DataFrame(
        {
            "question": [q.text for q in questions],
            "gain": gain,
            "low": gain - half,
            "high": gain + half,
            "df": family.df,
            "p": family.p,
            "p_holm": family.p_holm,
            "significant": family.significant,
        }
    )
    if patients < family.patients_needed:
        verdict = f"Cannot be answered with {count(patients, 'patient')}; it takes {family.patients_needed} or more"
        return table.assign(verdict=verdict, answer=[f"{q.text} {verdict}." for q in questions])[COLUMNS]
    table["verdict"] = np.where(family.significant, np.where(gain > 0, "Yes", "No, the opposite"), "No significant difference")
    table["answer"] = [
        f"{row['question']} {row['verdict']}: the gain is {row['gain']:+.3g} (uncorrected {100 * (1 - alpha):g} % interval "
        f"{row['low']:+.3g} to {row['high']:+.3g}; Holm p {_format_p(row['p_holm'])})."
        for row in table.to_dict("records")
    ]
    return table[COLUMNS]


def shown_answers(answers: pd.DataFrame) -> pd.DataFrame:
    """The answers as a table for readers."""
    signed = answers[["gain", "low", "high"]].map("{:+#.3g}".format, na_action="ignore")
    p_holm = ["" if np.isnan(p) else _format_p(p).removeprefix("= ") for p in answers["p_holm"]]
    return answers[["question", "verdict"]].join(signed).assign(p_holm=p_holm)


def _format_p(p: float) -> str:
    return f"= {p:.2g}" if p >= SMALL_P else f"< {SMALL_P}"
