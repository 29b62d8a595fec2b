"""One page about all studies for readers who do not know the code: rankings with verdicts, figures, data, parameters."""

import json
import os
import time
from pathlib import Path

import pandas as pd
from PIL import Image

from quintet import tracking
from quintet.errors import InputError
from quintet.files import atomic_file, repository_root
from quintet.pages import Section, format_number, write_page
from quintet.params import Params, StudyName
from quintet.ranking import letters
from quintet.ranking.questions import shown_answers
from quintet.runs import Record, flatten, git_commit, load_evaluated
from quintet.stage import newest_times
from quintet.study import load_study

OVERVIEW = (StudyName.landmarks, StudyName.perfusion, StudyName.breakhis)
CELL_PX = (760, 430)
READING = """The mean is over patients (each counts once); low and high are its 95 % interval. Configurations that share a letter
(group) are not significantly different. covered: the share of the way from a trivial method to the oracle, which knows how the
data were generated. All verdicts follow one decision rule (docs/ranking.md).

Scores on synthetic data show that the pipeline works and what its tables contain; they say nothing about patients."""


def write_report(params: Params, runs: Path, reports: Path, out: Path) -> str:
    """Write the page from the rankings below `runs` and `reports`; returns its summary."""
    rankings = {study: _ranking(runs / study.value / "rank") for study in StudyName}
    sections = [_overview(params, rankings)]
    for study, (record, table) in rankings.items():
        sections += _study(study, record, table, runs / study.value / "selected", reports / study.value, out.parent)
    newest = max((record for record, _ in rankings.values()), key=lambda ranked: ranked.tags["started"])
    sections += [Section("How to read this", READING), _origin(newest)]
    own = [study.value for study in StudyName if not _synthetic(params, study)]
    about = f"own data: {', '.join(own)}" if own else "all data is synthetic: scores say nothing about patients"
    ranked = sum(int(table["rank"].count()) for _, table in rankings.values())
    lead = f"{len(rankings)} studies, {ranked} ranked configurations; {about}."
    write_page(out, "Quintet", sections, lead=lead)
    write_overview(out.with_name("overview.png"), runs, reports)
    return lead


def write_overview(path: Path, runs: Path, reports: Path) -> None:
    """The README's picture: one ranking beside what the networks of three studies see."""
    figures = [reports / "landmarks" / "ranking" / "means.png"]
    for study in OVERVIEW:
        figures.append(runs / study / "selected" / "evaluation" / "figures" / load_study(study).FIGURE)
    width, height = CELL_PX
    canvas = Image.new("RGB", (2 * width, 2 * height), "white")
    for number, figure in enumerate(figure for figure in figures if figure.is_file()):
        image = Image.open(figure).convert("RGB")
        fits = image.height * width < 1.25 * image.width * height  # otherwise its lower rows are cut off
        scale = min(width / image.width, height / image.height) if fits else width / image.width
        image = image.resize((round(image.width * scale), round(image.height * scale)))
        image = image.crop((0, 0, image.width, min(image.height, height)))
        canvas.paste(image, (number % 2 * width, number // 2 * height))
    with atomic_file(path) as temporary:
        canvas.save(temporary)


def _ranking(folder: Path) -> tuple[Record, pd.DataFrame]:
    record = Record.load(folder)
    path = Path(next(iter(record.artifacts.values()))) / "ranking.csv"
    if not path.is_file():
        raise InputError(f"{path}: no such ranking; run `dvc repro {record.study}_rank`")
    return record, pd.read_csv(
        path, dtype={"config": str, "group": str, "rank": "Int64", "runs": "Int64"}, keep_default_na=False, na_values=[""]
    )


def _synthetic(params: Params, study: StudyName) -> bool:
    return params.of(study).raw == f"data/synthetic/{study.value}"


def _overview(params: Params, rankings: dict[StudyName, tuple[Record, pd.DataFrame]]) -> Section:
    rows = []
    for study, (record, rows_of_study) in rankings.items():
        table = rows_of_study.dropna(subset="rank")  # the ceiling has none
        best = table.iloc[0]
        tied = (
            f"{_tied(table)} of {len(table) - 1} others"
            if record.tags["decidable"] == "true"
            else "not decidable: too few patients"
        )
        score, low, high = (format_number(best[name]) for name in ("mean", "low", "high"))
        rows.append(
            {
                "study": record.tags["title"],
                "first": best["config"],
                "score [95 %]": f"{score} [{low}, {high}]",
                "not significantly different": tied,
                "ranked by": record.tags["label"].partition(",")[0],
                "better": record.tags["better"],
                "data": "synthetic" if _synthetic(params, study) else "own",
            }
        )
    return Section("Which configuration is first, and is its lead significant?", table=pd.DataFrame(rows))


def _tied(table: pd.DataFrame) -> int:
    """The number of configurations that share a letter with the first."""
    first, *others = map(letters, table["group"])
    return sum(bool(first & other) for other in others)


def _metric(record: Record) -> str:
    unit = f", {record.tags['unit']}" if record.tags["unit"] else ""
    return f"{record.tags['label']}{unit} ({record.tags['better']} is better)"


def _answers(record: Record, folder: Path) -> list[Section]:
    """The comparisons that the study planned."""
    answers = pd.read_csv(folder / "planned.csv")
    if answers.empty:
        return []
    text = (
        f"Gains in {_metric(record)}; positive means better; low and high are the interval of one comparison by itself. p-values "
        "are corrected for these comparisons (Holm), not for all pairs: one of them can be significant where the letters of the "
        "table above show no difference."
    )
    return [Section("Planned comparisons", text, shown_answers(answers), level=3)]


def _study(
    study: StudyName, record: Record, table: pd.DataFrame, selected: Path, reports: Path, page_folder: Path
) -> list[Section]:
    columns = ["rank", "config", "mean", "low", "high", "group", "runs", "published", "covered"]
    shown = table.reindex(columns=columns).dropna(axis="columns", how="all")
    shown = shown.astype({"rank": object, "runs": object}).fillna({"rank": "", "runs": ""})  # to_html would write <NA>
    published = "published: as reported for the reference's own data, not comparable with ours. " if "published" in shown else ""
    package = load_study(study)
    paths = [reports / "ranking" / "means.png", selected / "evaluation" / "figures" / package.FIGURE]
    figures = [path for path in paths if path.is_file()]
    trained = load_evaluated(selected)
    links = {
        "full ranking": reports / "ranking" / "ranking.html",
        "data": reports / "data.html",
    }
    addresses = {text: Path(os.path.relpath(path, page_folder)).as_posix() for text, path in links.items() if path.is_file()}
    for text, run in (("ranking in MLflow", record), ("selected run in MLflow", trained)):
        if address := tracking.run_url(run):
            addresses[text] = address
    return [
        Section(
            record.tags["title"],
            f"{_metric(record)}. {published}{package.FIGURE_CAPTION}",
            shown,
            figures,
            record.tags["verdict"],
            addresses,
        ),
        *_answers(record, reports / "ranking"),
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
    took = f"{sum(total for _, _, total in times.values()):.0f} s of {len(times)} stage processes" if times else "unknown"
    rows = {
        "written": time.strftime("%Y-%m-%d %H:%M %Z"),
        "commit": git_commit(),
        "machine": record.tags["machine"],
        "newest run of each stage": took,
    }
    rows |= {name.removeprefix("version."): value for name, value in record.tags.items() if name.startswith("version.")}
    return Section("Provenance", table=pd.DataFrame(rows.items(), columns=["item", "value"]))
