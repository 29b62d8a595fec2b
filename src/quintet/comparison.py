"""What the studies' comparisons share: which runs are compared, tables of what was measured, the record of a ranking."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from quintet.files import atomic_folder
from quintet.pages import Section
from quintet.params.common import SeedSweep
from quintet.ranking import Ranking, write
from quintet.runs import Record, new_record

Runs = Mapping[str, list[Path]]  # configuration -> its run folders


def sweep_runs(sweep: SeedSweep, folder: Path) -> dict[str, list[Path]]:
    """The run folders below `folder` that params name."""
    return {name: [folder / name / run for run in sweep.runs] for name in sweep.configs}


def prune_runs(folder: Path, runs: Iterable[Path]) -> None:
    """Remove the cells below `folder` that are not among `runs` (DVC's cache keeps them), or a fresh clone's ranking would be
    another one."""
    kept = set(runs) | {parent for run in runs for parent in run.parents}
    for path in sorted(folder.rglob("*"), key=lambda p: len(p.parts)):
        inside = any(parent in runs for parent in path.parents)
        if path.is_dir() and path not in kept and not inside:
            shutil.rmtree(path, ignore_errors=True)


def evaluation_metrics(runs: Runs, order: Iterable[str]) -> pd.DataFrame:
    """evaluation/metrics.json of each configuration in `order`, averaged over its runs; index config."""
    return _table({name: pd.DataFrame([_read(run) for run in runs[name]]).mean().to_dict() for name in order})


def training_metrics(runs: Runs, order: Iterable[str]) -> pd.DataFrame:
    """The training's final metrics (costs) of each configuration, averaged over its runs; index config."""
    return _table({name: pd.DataFrame([Record.load(run).metrics for run in runs[name]]).mean().to_dict() for name in order})


def select_columns(table: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    """Some columns under other names, the index as first column."""
    return table.reindex(columns=list(columns)).rename(columns=columns).reset_index()


def publish(
    study: str,
    ranked: Ranking,
    runs: Runs,
    out: Path,
    report: Path,
    *,
    title: str,
    unit: str,
    extra: Callable[[Path], Sequence[Section]],
) -> None:
    """Write the ranking's files into `report`, and `out` = {record.json}: a ranking is an MLflow run of its own, with those files
    among its artifacts. `extra`: the study's own sections, whose figures it draws into the folder that it is given."""
    with atomic_folder(report) as folder:
        write(ranked, folder, title=title, unit=unit, extra=extra(folder))
    inputs = {f"{name} {run.name}": run / "evaluation" / "cases.csv" for name, group in runs.items() for run in group}
    record = new_record(study, "rank", "ranking", seed=0, params={"configs": ", ".join(runs)}, inputs=inputs)
    record.metrics = {f"{ranked.metric}/{row.config}": float(row.mean) for row in ranked.table.itertuples()}
    better = "lower" if ranked.lower_is_better else "higher"
    record.tags |= {"title": title, "metric": ranked.metric, "unit": unit, "better": better, "verdict": ranked.verdict}
    record.artifacts = [report.as_posix()]
    out.mkdir(parents=True, exist_ok=True)
    record.save(out)


def _table(rows: dict[str, dict[str, float]]) -> pd.DataFrame:
    return pd.DataFrame(rows).T.rename_axis("config")


def _read(run: Path) -> dict[str, float]:
    values: dict[str, float] = json.loads((run / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    return values
