"""One page about all studies for a person who did not write the code: rankings with their verdicts, figures, data, parameters."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import pandas as pd

from quintet import tracking
from quintet.errors import InputError
from quintet.files import repository_root
from quintet.pages import Section, format_number, write_page
from quintet.params import Params, StudyName
from quintet.runs import Record, flatten
from quintet.stage import newest_times

# The picture that shows what a study's network does: of the selected run's evaluation
PICTURES = {
    StudyName.landmarks: ("overlays.png", "Test images: true and predicted landmarks."),
    StudyName.perfusion: ("overlays.png", "Held-out people: true and predicted territories."),
    StudyName.breakhis: ("grad_cam.png", "Where MMNet looks (Grad-CAM)."),
    StudyName.ct: ("retrieval.png", "Scores by cut-off, similarity by shared findings, and a map of the test scans."),
    StudyName.fusion: ("patterns.png", "Score by the modalities that a patient has."),
}
SOURCES = ("src", "stages", "params.yaml", "dvc.yaml")
READING = """mean is over patients (each counts once), low and high are its 95 % interval. Configurations that share a letter
(group) are not separated by the data: which of them is ahead is not shown. Every verdict is one rule's (docs/ranking.md).

A study whose data is synthetic shows that the pipeline works and what its tables can say; its scores say nothing of patients."""


def write_report(params: Params, runs: Path, reports: Path, out: Path) -> str:
    """Write the page from the rankings below `runs` and `reports`; returns how many configurations it ranks."""
    rankings = {study: _ranking(runs / study.value / "rank") for study in StudyName}
    sections = [_overview(params, rankings)]
    for study, (record, table) in rankings.items():
        sections += _study(study, record, table, runs / study.value / "selected", reports / study.value, out.parent)
    sections += [Section("How to read this", READING), _origin(rankings[StudyName.landmarks][0])]
    own = [study.value for study in StudyName if not _synthetic(params, study)]
    about = f"own data: {', '.join(own)}" if own else "all data is synthetic: scores say nothing about patients"
    lead = f"{len(rankings)} studies, {sum(len(table) for _, table in rankings.values())} ranked configurations; {about}."
    write_page(out, "Quintet", sections, lead=lead)
    return lead


def _ranking(folder: Path) -> tuple[Record, pd.DataFrame]:
    record = Record.load(folder)
    path = Path(record.artifacts[0]) / "ranking.csv"
    if not path.is_file():
        raise InputError(f"{path}: no such ranking; `dvc repro {record.study}_rank` writes it")
    return record, pd.read_csv(path, dtype={"config": str, "group": str}, keep_default_na=False, na_values=[""])


def _synthetic(params: Params, study: StudyName) -> bool:
    return str(getattr(params, study.value).raw) == f"data/synthetic/{study.value}"


def _overview(params: Params, rankings: dict[StudyName, tuple[Record, pd.DataFrame]]) -> Section:
    rows = []
    for study, (record, table) in rankings.items():
        best, together = table.iloc[0], _together(table)
        score, low, high = (format_number(best[name]) for name in ("mean", "low", "high"))
        rows.append(
            {
                "study": record.tags["title"],
                "first": best["config"],
                "score [95 %]": f"{score} [{low}, {high}]",
                "not separated from": f"{together} of {len(table) - 1} others",
                "ranked by": f"{record.tags['metric']} ({record.tags['better']})",
                "data": "synthetic" if _synthetic(params, study) else "own",
            }
        )
    return Section("Who is first, and does it mean anything?", table=pd.DataFrame(rows))


def _together(table: pd.DataFrame) -> int:
    """How many configurations share a letter with the first."""
    letters = set(table["group"].iloc[0])
    return sum(bool(letters & set(group)) for group in table["group"].iloc[1:])


def _measure(record: Record) -> str:
    unit = f", {record.tags['unit']}" if record.tags["unit"] else ""
    return f"{record.tags['metric']}{unit} ({record.tags['better']} is better)"


def _study(study: StudyName, record: Record, table: pd.DataFrame, selected: Path, reports: Path, beside: Path) -> list[Section]:
    shown = table[["rank", "config", "mean", "low", "high", "group", "runs"]]
    if table["published"].notna().any():
        shown = shown.assign(published=table["published"])
    picture, caption = PICTURES[study]
    figures = [
        path for path in [reports / "ranking" / "means.png", selected / "evaluation" / "figures" / picture] if path.is_file()
    ]
    trained = Record.load(selected)
    links = {
        "the whole ranking": reports / "ranking" / "ranking.html",
        "the data": reports / "data.html",
    }
    addresses = {text: path.relative_to(beside).as_posix() for text, path in links.items() if path.is_file()}
    for text, run in (("the ranking in MLflow", record), ("the selected run in MLflow", trained)):
        if address := tracking.run_url(run):
            addresses[text] = address
    return [
        Section(record.tags["title"], f"{_measure(record)}. {caption}", shown, figures, record.tags["verdict"], addresses),
        Section(f"Selected configuration of {study.value}: scores", table=_scores(reports / "selected.json"), folded=True),
        Section(f"Selected configuration of {study.value}: parameters", table=_parameters(trained), folded=True),
    ]


def _scores(path: Path) -> pd.DataFrame:
    values = flatten(json.loads(path.read_text(encoding="utf-8")))
    return pd.DataFrame(
        [(k, format_number(float(v))) for k, v in values.items() if isinstance(v, int | float)], columns=["score", "value"]
    )


def _parameters(record: Record) -> pd.DataFrame:
    rows = [(name, str(value)) for name, value in flatten(record.params).items()]
    rows += [(f"input {name} (md5)", value) for name, value in record.inputs.items()]
    return pd.DataFrame(rows, columns=["parameter", "value"])


def _origin(record: Record) -> Section:
    times = newest_times(repository_root())
    took = f"{sum(total for _, _, total in times.values()):.0f} s of {len(times)} stage processes" if times else "not known"
    rows = {
        "written": time.strftime("%Y-%m-%d %H:%M %Z"),
        "commit": _commit(),
        "machine": record.tags["machine"],
        "newest run of each stage": took,
    }
    rows |= {name.removeprefix("version."): value for name, value in record.tags.items() if name.startswith("version.")}
    return Section("Where it comes from", table=pd.DataFrame(rows.items(), columns=["what", ""]))


def _commit() -> str:
    """The commit, and whether code or parameters differ from it."""
    if not shutil.which("git"):
        return "not known"
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    changed = subprocess.run(["git", "status", "--porcelain", "--", *SOURCES], capture_output=True, text=True, check=False).stdout
    return (head or "none") + (" and uncommitted changes" if changed.strip() else "")
