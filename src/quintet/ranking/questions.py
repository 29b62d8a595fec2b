"""Comparisons that a study declares before it is measured: a family of their own, each answered in one sentence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from quintet.ranking.decision import Family
from quintet.ranking.variance import Floats
from quintet.ranking.verdict import count

SMALL_P = 0.001
COLUMNS = ["question", "gain", "low", "high", "df", "p", "p_holm", "significant", "answer"]


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
    answers = [f"{row['question']} {_finding(row, patients, family, alpha)}" for row in table.to_dict("records")]
    return table.assign(answer=answers)[COLUMNS]


def _finding(row: dict[Any, Any], patients: int, family: Family, alpha: float) -> str:
    if patients < family.patients_needed:
        return f"Cannot be answered with {count(patients, 'patient')}; it takes {family.patients_needed} or more."
    lead = ("Yes" if row["gain"] > 0 else "No, the opposite") if row["significant"] else "No significant difference"
    p = f"Holm p = {row['p_holm']:.2g}" if row["p_holm"] >= SMALL_P else f"Holm p < {SMALL_P}"
    interval = f"uncorrected {100 * (1 - alpha):g} % interval {row['low']:+.3g} to {row['high']:+.3g}"
    return f"{lead}: the gain is {row['gain']:+.3g} ({interval}; {p})."
