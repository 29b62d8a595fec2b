"""What the studies' rankings share: tables of metrics, and the record and report of a ranking."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from quintet import results
from quintet.files import atomic_folder
from quintet.pages import Section
from quintet.ranking import Ranking, write
from quintet.runs import Record, new_record

Runs = Mapping[str, list[Path]]  # configuration -> its run folders


def prune_runs(folder: Path, runs: Iterable[Path]) -> None:
    """Remove the run folders below `folder` that are not among `runs`."""
    wanted = set(runs)
    kept = wanted | {parent for run in wanted for parent in run.parents}
    for path in sorted(folder.rglob("*"), key=lambda p: len(p.parts)):
        inside = any(parent in wanted for parent in path.parents)
        if path.is_dir() and path not in kept and not inside:
            shutil.rmtree(path, ignore_errors=True)


def read_cases(runs: Iterable[Path]) -> pd.DataFrame:
    """The tidy tables of evaluated runs, joined."""
    return results.read(run / "evaluation" / "cases.csv" for run in runs)


def read_all_cases(runs: Runs) -> pd.DataFrame:
    return read_cases(run for folders in runs.values() for run in folders)


def evaluation_metrics(runs: Runs, order: Iterable[str]) -> pd.DataFrame:
    """evaluation/metrics.json of each configuration in `order`, averaged over its runs; index config."""
    return _table({name: pd.DataFrame([read_metrics(run) for run in runs[name]]).mean().to_dict() for name in order})


def training_metrics(runs: Runs, order: Iterable[str]) -> pd.DataFrame:
    """The final metrics of training (costs) of each configuration, averaged over its runs; index config."""
    return _table({name: pd.DataFrame([Record.load(run).metrics for run in runs[name]]).mean().to_dict() for name in order})


def read_metrics(run: Path) -> dict[str, float]:
    values: dict[str, float] = json.loads((run / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    return values


def select_columns(table: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    """Some columns under other names, with the index as the first column."""
    return table.reindex(columns=list(columns)).rename(columns=columns).reset_index()


def publish(
    study: str,
    ranking: Ranking,
    runs: Runs,
    out: Path,
    report: Path,
    *,
    title: str,
    unit: str,
    sections: Callable[[Path], Sequence[Section]],
) -> None:
    """Write the ranking's files into `report`, and `out` = {record.json}: in MLflow a ranking is a run of its own, and the report
    is its artifact. `sections` makes the study's own sections, whose figures go into the folder that it is given."""
    with atomic_folder(report) as folder:
        write(ranking, folder, title=title, unit=unit, extra=sections(folder))
    inputs = {f"{name} {run.name}": run / "evaluation" / "cases.csv" for name, group in runs.items() for run in group}
    record = new_record(study, "rank", "ranking", seed=0, params={"configs": ", ".join(runs)}, inputs=inputs)
    record.metrics = {f"{ranking.metric}/{row.config}": float(row.mean) for row in ranking.table.itertuples()}
    better = "lower" if ranking.lower_is_better else "higher"
    record.tags |= {
        "title": title,
        "metric": ranking.metric,
        "label": ranking.label,
        "unit": unit,
        "better": better,
        "verdict": ranking.verdict,
        "decidable": str(ranking.decidable).lower(),
    }
    record.artifacts = {report.as_posix(): report.as_posix()}
    out.mkdir(parents=True, exist_ok=True)
    record.save(out)


def _table(rows: dict[str, dict[str, float]]) -> pd.DataFrame:
    return pd.DataFrame(rows).T.rename_axis("config")
