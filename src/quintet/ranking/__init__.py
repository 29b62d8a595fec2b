"""Rank configurations and decide which differences are significant: `rank` a tidy table, then `write` the report.

`decide` is the decision rule alone, on an array [configs, runs, patients], fast enough for simulations.
"""

from quintet.ranking.decision import Decision, compact_letters, decide, letters, patients_needed
from quintet.ranking.paper import JACKKNIFE
from quintet.ranking.planning import Plan, plan
from quintet.ranking.questions import Question, is_better
from quintet.ranking.report import write
from quintet.ranking.table import Ranking, rank

__all__ = [
    "JACKKNIFE",
    "Decision",
    "Plan",
    "Question",
    "Ranking",
    "compact_letters",
    "decide",
    "is_better",
    "letters",
    "patients_needed",
    "plan",
    "rank",
    "write",
]
