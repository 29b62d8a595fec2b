"""The `quintet` command."""

import importlib
import os
import sys
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from quintet import params as parameters
from quintet.errors import InputError, InputProblemsError, exit_on_user_error
from quintet.files import refuse_overlap, repository_root
from quintet.params import StudyName

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


class Preset(StrEnum):
    demo = "demo"
    paper = "paper"
    best = "best"
    top3 = "top3"
    smoke = "smoke"


Data = Annotated[Path | None, typer.Option(help="The raw folder; default: the study's `raw` in params.yaml.")]
Runs = Annotated[list[str], typer.Option("--model", help="A folder under runs/ or an MLflow run id; several are averaged.")]


class Retrieval(StrEnum):
    """The study that scans can be searched by."""

    ct = "ct"


def room(study: StudyName, door: str) -> ModuleType:
    """A study's module; imported when asked for, because torch alone costs seconds."""
    return importlib.import_module(f"quintet.{study.value}.{door}")


def section(study: StudyName) -> Any:
    return getattr(parameters.load(repository_root() / "params.yaml"), study.value)


def raw_folder(study: StudyName, data: Path | None) -> Path:
    return data if data else repository_root() / section(study).raw


def fresh(*folders: Path | None) -> None:
    """Results replace a folder as a whole: refuse one that holds something, which may be the user's own."""
    for folder in folders:
        if folder and folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"{folder} is there already and not empty; name another folder or delete it")
        if folder and folder.is_file():
            raise InputError(f"{folder} is there already; name another file or delete it")


@app.command()
def doctor(cache: Annotated[bool, typer.Option("--cache", help="Read every object of DVC's cache as well.")] = False) -> None:
    """Show environment, device, precision and versions, and what is missing or damaged."""
    from quintet.doctor import examine, examine_cache

    root = repository_root()
    report, missing = examine(root)
    print(report)
    problems = [f"missing: {thing}" for thing in missing]
    if cache:
        line, damaged = examine_cache(root)
        print(line)
        problems += damaged
    if problems:
        raise InputProblemsError(str(root), problems)


@app.command()
def check(study: StudyName, data: Data = None) -> None:
    """Run every input check of a study on a raw folder and list all problems at once."""
    raw = raw_folder(study, data)
    if problems := room(study, "data").check(raw, section(study)):
        raise InputProblemsError(str(raw), problems)
    print(f"{raw}: no problem found")


@app.command()
def analyze(study: StudyName, data: Data = None, page: Path = Path("data.html")) -> None:
    """Describe a raw folder as an HTML page: cases, classes, splits, duplicates, what limits the score."""
    room(study, "analysis").analyze(raw_folder(study, data), page, section(study))
    print(f"written: {page}")


@app.command()
def preset(name: Preset, study: Annotated[StudyName | None, typer.Argument()] = None) -> None:
    """Lay presets/NAME.yaml over params.yaml (one study's part of it) and show what changed."""
    from quintet.presets import apply_preset

    changed = apply_preset(repository_root(), name.value, study.value if study else None)
    print("\n".join(changed) if changed else "params.yaml has these values already")


@app.command()
def predict(
    study: StudyName,
    model: Runs,
    input: Annotated[Path, typer.Option(help="Folder of new cases.")],
    output: Annotated[Path, typer.Option(help="The file (landmarks, breakhis, ct, fusion) or folder (perfusion) to write.")],
    overlays: Annotated[
        Path | None, typer.Option(help="Folder for one picture per case (breakhis: Grad-CAM; fusion: its cubes).")
    ] = None,
    skip: Annotated[bool, typer.Option(help="Leave unreadable cases out instead of stopping.")] = False,
    ttt: Annotated[bool, typer.Option(help="fusion: train on each patient before predicting it (test-time training).")] = False,
    device: str = "auto",
) -> None:
    """Predict a folder of new cases with one trained run, or with the mean of several."""
    from quintet.tracking import resolve_run

    fresh(output, overlays)
    if overlays:
        refuse_overlap(output, overlays)
    if ttt and study is not StudyName.fusion:
        raise InputError(f"--ttt: {study.value} has no test-time training; fusion has")
    runs = [resolve_run(run) for run in model]
    extra = {"ttt": True} if ttt else {}
    count = room(study, "prediction").predict_folder(runs, input, output, overlays=overlays, device=device, skip=skip, **extra)
    print(f"{count} cases predicted: {output}" + (f", overlays in {overlays}" if overlays else ""))


@app.command()
def evaluate(
    study: StudyName,
    model: Runs,
    data: Data = None,
    output: Annotated[Path, typer.Option(help="Folder for tables and figures.")] = Path("evaluation"),
    device: str = "auto",
) -> None:
    """Evaluate a saved run on every case of a labelled raw folder (of --data; default: the study's own).

    ct also takes a .npz or .parquet file of ids and vectors as --model: embeddings from elsewhere.
    """
    from quintet.tracking import resolve_run

    fresh(output)
    runs = [Path(run) if study is StudyName.ct and Path(run).is_file() else resolve_run(run) for run in model]
    metrics = room(study, "prediction").evaluate_folder(
        runs, raw_folder(study, data), output, device=device, params=section(study)
    )
    print("\n".join(f"{name:40} {value:10.3f}" for name, value in metrics.items()) + f"\nwritten: {output}")


@app.command()
def index(
    study: Retrieval,
    model: Runs,
    input: Annotated[
        Path, typer.Option(help="Folder with one entry a study; its labels.csv, if there is one, names the findings.")
    ],
    output: Annotated[Path, typer.Option(help="Folder of the index to write.")],
    skip: Annotated[bool, typer.Option(help="Leave unreadable studies out instead of stopping.")] = False,
    device: str = "auto",
) -> None:
    """Embed a folder of scans once, so that `search` finds similar ones (ct.index: exact, hnsw or ivf)."""
    from quintet.tracking import resolve_run

    fresh(output)
    kind = section(StudyName(study.value)).index
    about = room(StudyName(study.value), "search").build(
        [resolve_run(run) for run in model], input, output, kind=kind, device=device, skip=skip
    )
    print(", ".join(f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}" for name, value in about.items()))
    print(f"written: {output}")


@app.command()
def search(
    study: Retrieval,
    index: Annotated[Path, typer.Option(help="A folder that `quintet index` wrote.")],
    query: Annotated[str, typer.Option(help="A study of the index, or the path of another (series folder or NIfTI file).")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many.")] = 10,
    montage: Annotated[Path | None, typer.Option(help="A PNG of the query beside its neighbours.")] = None,
    device: str = "auto",
) -> None:
    """The scans of an index that are most like one: similarity, findings, and a montage."""
    fresh(montage)
    found = room(StudyName(study.value), "search").search(index, query, k, picture=montage, device=device)
    print(found.to_string(index=False) + (f"\nwritten: {montage}" if montage else ""))


@app.command()
def plan(
    study: StudyName,
    difference: Annotated[float | None, typer.Option(min=0, help="A difference worth finding; default: as measured.")] = None,
    run_sd: Annotated[float | None, typer.Option(min=0, help="SD between training runs; default: as measured.")] = None,
    power: Annotated[float, typer.Option(help="The chance of separating the pair.")] = 0.8,
) -> None:
    """How many patients and seeds would separate a study's first configuration (values in its metric's unit)."""
    from quintet import ranking

    os.chdir(repository_root())
    ranked = room(study, "comparison").ranked(parameters.load())
    planned = ranking.plan(ranked, power=power, difference=difference, run_sd=run_sd)
    print(planned.table.to_string(index=False), planned.basis, planned.verdict, sep="\n\n")


class Engine(StrEnum):
    local = "local"
    ray = "ray"


@app.command()
def repro(
    targets: Annotated[list[str] | None, typer.Argument(help="Stages, or sweeps; default: all.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Stages at a time.")] = os.cpu_count() or 1,
    threads: Annotated[int, typer.Option(min=0, help="Of each stage; 0: compute.threads, else the cores divided by jobs.")] = 0,
    engine: Engine = Engine.local,
) -> None:
    """Run stale stages in parallel; equal threads give results equal to `dvc repro`'s."""
    from quintet.engines import Local, Ray
    from quintet.repro import repro as run
    from quintet.repro import summary

    root = repository_root().resolve()
    os.chdir(root)  # DVC names stages relative to the current folder
    own = parameters.load(root / "params.yaml").compute.threads
    threads = threads or own or (max(1, (os.cpu_count() or 1) // jobs) if engine is Engine.local else 1)
    try:
        outcome = run(root, Ray(threads) if engine is Engine.ray else Local(jobs), targets or [], jobs=jobs, threads=threads)
    except KeyboardInterrupt:
        print("stopped; what ended is recorded, the same command goes on from there", file=sys.stderr)
        raise SystemExit(130) from None
    print(summary(outcome))
    if outcome.failed:
        raise SystemExit(1)


@app.command()
def sync() -> None:
    """Upload to MLflow what it lacks of the runs under runs/."""
    from quintet import tracking

    root = repository_root()
    os.chdir(root)
    uploaded, there = tracking.sync(root)
    print(f"MLflow {tracking.tracking_uri()}: {uploaded} uploaded, {there} already there")


@app.command()
def times() -> None:
    """How long the newest run of each stage took, start-up and imports counted."""
    from quintet.stage import times_table

    print(times_table(repository_root()))


def main() -> None:
    with exit_on_user_error("the results"):
        app()
