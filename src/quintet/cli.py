"""Check data, apply trained runs, rank results, and run the pipeline of five medical-imaging studies."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from quintet import params as parameters
from quintet.errors import InputError, InputProblemsError, exit_on_user_error
from quintet.files import reject_overlap, repository_root
from quintet.params import StudyName
from quintet.study import load_study

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=__doc__,
)


OUTDATED = "runs have changed since they were ranked, and may not belong together; run `dvc repro {study}_rank` first"


class Preset(StrEnum):
    demo = "demo"
    paper = "paper"
    best = "best"
    top3 = "top3"
    smoke = "smoke"


Data = Annotated[Path | None, typer.Option(help="A raw folder; default: the study's `raw` in params.yaml.")]
Runs = Annotated[
    list[str], typer.Option("--model", help="A folder under runs/ or an MLflow run id; repeat it to average several runs.")
]

Device = Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda or mps.")]


class RetrievalStudy(StrEnum):
    """Studies whose cases can be searched for similar ones."""

    ct = "ct"


def load_params() -> parameters.Params:
    return parameters.load(repository_root() / "params.yaml")


def raw_folder(study: StudyName, data: Path | None) -> Path:
    return data.absolute() if data else repository_root() / load_params().of(study).raw


def require_empty(*outputs: Path | None, outside: Path | None = None) -> None:
    """Raise InputError if an output has content, which may be the user's own (results replace a folder as a whole), or lies in
    the folder `outside`, where the next run would take it for input."""
    for output in outputs:
        if output and outside and output.resolve().is_relative_to(outside.resolve()):
            raise InputError(f"{output} is inside {outside}, where it would be taken for input later; choose another place")
        if output and output.is_dir() and any(output.iterdir()):
            raise InputError(f"{output} exists and is not empty; choose another folder or delete it")
        if output and output.is_file():
            raise InputError(f"{output} exists; choose another file or delete it")


@app.command()
def doctor(cache: Annotated[bool, typer.Option("--cache", help="Read every object of DVC's cache as well.")] = False) -> None:
    """Show environment, device, precision and versions, and report what is missing or damaged."""
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
    os.chdir(repository_root())  # a split file's path in params.yaml begins there
    if problems := load_study(study).check(raw, load_params().of(study)):
        raise InputProblemsError(str(raw), problems)
    print(f"{raw}: no problem found")


@app.command()
def analyze(
    study: StudyName, data: Data = None, page: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("data.html")
) -> None:
    """Describe a raw folder as an HTML page: cases, classes, splits, duplicates, and what limits the score."""
    if page.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--page {page}: the page is written as HTML; choose a name that ends in .html")
    raw, target = raw_folder(study, data), page.absolute()
    os.chdir(repository_root())
    load_study(study).analyze(raw, target, load_params().of(study))
    print(f"written: {page}")


@app.command()
def preset(name: Preset, study: Annotated[StudyName | None, typer.Argument()] = None) -> None:
    """Apply a preset to params.yaml, or to one study's section, and show what changed.

    demo: the committed values. paper: the published scale, for a GPU. best: what we recommend for real data (landmarks,
    perfusion). top3: perfusion's published best three and last, with 5 folds and 3 seeds. smoke: tiny, the pipeline in minutes.
    """
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
        Path | None, typer.Option(help="Folder for one figure per case (breakhis: Grad-CAM; fusion: image cubes).")
    ] = None,
    skip: Annotated[bool, typer.Option(help="Skip unreadable cases instead of stopping.")] = False,
    ttt: Annotated[
        bool, typer.Option(help="fusion: adapt the network to each patient before predicting (test-time training).")
    ] = False,
    device: Device = "auto",
) -> None:
    """Apply a trained run to new cases; repeat `--model` to average several runs. Outputs must not already exist."""
    from quintet.experiment import predict_folder
    from quintet.tracking import resolve_run

    require_empty(*load_study(study).prediction_files(output), overlays, outside=input)
    if overlays:
        reject_overlap(output, overlays)
    if ttt and study is not StudyName.fusion:
        raise InputError(f"--ttt: {study.value} has no test-time training; only fusion does")
    runs = [resolve_run(run) for run in model]
    options = {"ttt": True} if ttt else {}
    count = predict_folder(study, runs, input, output, overlays=overlays, device=device, skip=skip, **options)
    print(f"{count} case{'s' * (count != 1)} predicted: {output}" + (f", overlays in {overlays}" if overlays else ""))


@app.command()
def evaluate(
    study: StudyName,
    model: Runs,
    data: Data = None,
    output: Annotated[Path, typer.Option(help="Folder for tables and figures.")] = Path("evaluation"),
    device: Device = "auto",
) -> None:
    """Evaluate a trained run on every case of a labelled raw folder.

    For ct, --model may also be a .npz or .parquet file of external embeddings (ids and vectors).
    """
    from quintet.experiment import evaluate_folder
    from quintet.tracking import resolve_run

    require_empty(output, outside=raw_folder(study, data))
    runs = [Path(run) if study is StudyName.ct and Path(run).is_file() else resolve_run(run) for run in model]
    metrics = evaluate_folder(study, runs, raw_folder(study, data), output, load_params(), device=device)
    print("\n".join(f"{name:40} {value:10.3f}" for name, value in metrics.items()) + f"\nwritten: {output}")


@app.command()
def index(
    study: RetrievalStudy,
    model: Runs,
    input: Annotated[Path, typer.Option(help="Folder with one entry per scan; its labels.csv, if any, gives the findings.")],
    output: Annotated[Path, typer.Option(help="Folder for the index.")],
    skip: Annotated[bool, typer.Option(help="Skip unreadable scans instead of stopping.")] = False,
    device: Device = "auto",
) -> None:
    """Embed a folder of scans once, so that `search` can find similar ones (ct.index: exact, hnsw or ivf)."""
    from quintet.ct.search import build
    from quintet.tracking import resolve_run

    require_empty(output, outside=input)
    runs = [resolve_run(run) for run in model]
    about = build(runs, input, output, kind=load_params().ct.index, device=device, skip=skip)
    print(", ".join(f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}" for name, value in about.items()))
    print(f"written: {output}")


@app.command()
def search(
    study: RetrievalStudy,
    index: Annotated[Path, typer.Option(help="A folder written by `quintet index`.")],
    query: Annotated[str, typer.Option(help="The name of a scan in the index, or a path (DICOM series folder or NIfTI file).")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many scans to return.")] = 10,
    montage: Annotated[Path | None, typer.Option(help="PNG file for the query beside its neighbours.")] = None,
    device: Device = "auto",
) -> None:
    """Find the scans of an index that are most similar to one: similarity, findings and a montage."""
    from quintet.ct.search import search as search_index

    require_empty(montage)
    if montage and montage.suffix.lower() != ".png":
        raise InputError(f"--montage {montage}: the montage is a PNG; choose a name that ends in .png")
    found = search_index(index, query, k, picture=montage, device=device)
    print(found.to_string(index=False) + (f"\nwritten: {montage}" if montage else ""))


@app.command()
def rank(
    results: Annotated[
        list[str], typer.Argument(help="CSV files, nnU-Net result folders or summaries; NAME=PATH names the configuration.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the report.")],
    metric: Annotated[str, typer.Option(help="The metric's name in the files; for a plain CSV, any name.")] = "Dice",
    lower_is_better: Annotated[bool, typer.Option("--lower-is-better", help="Lower is better (default: higher).")] = False,
    subject: Annotated[
        str, typer.Option(help="nnU-Net: the pattern that finds the patient in a case's name.")
    ] = r"^(?P<subject>.+?)-v\d+$",
    range: Annotated[
        tuple[float, float] | None, typer.Option(help="Lowest and highest possible score (Dice and IoU: 0 1).")
    ] = None,
    undefined: Annotated[float | None, typer.Option(help="The value of scores that are NaN.")] = None,
    against: Annotated[
        str | None, typer.Option(help="Planned comparisons: every configuration with this one, corrected separately.")
    ] = None,
    deterministic: Annotated[list[str] | None, typer.Option(help="A configuration whose training is deterministic.")] = None,
    same_run_as: Annotated[list[str] | None, typer.Option(help="A=B: A shares B's weights in runs of the same seed.")] = None,
    alpha: Annotated[float, typer.Option(help="Level of significance.")] = 0.05,
    title: Annotated[str, typer.Option(help="Heading of the report.")] = "Ranking",
) -> None:
    """Rank results that were made elsewhere, under the same decision rule, and write the report."""
    from quintet.ranking.elsewhere import Settings, write_ranking
    from quintet.ranking.elsewhere.nnunet import count_unmatched
    from quintet.ranking.elsewhere.reading import ERRORS, RANGES, read_results

    require_empty(output)
    if ERRORS.match(metric) and not lower_is_better:
        raise InputError(f"--metric {metric}: its name is that of an error; add --lower-is-better, or name it otherwise")
    related: dict[str, str] = {}
    for pair in same_run_as or []:
        first, equals, second = pair.partition("=")
        if not equals or first in related:
            raise InputError(f"--same-run-as {pair}: expected A=B, once for each A")
        related[first] = second
    values = {"metric": metric, "lower_is_better": lower_is_better, "alpha": alpha, "bounds": range or RANGES.get(metric.lower())}
    settings = Settings.of(values | {"deterministic": deterministic or [], "same_run_as": related, "against": against})
    table = read_results(results, metric, subject=subject, bounds=settings.bounds, undefined=undefined)
    if alone := count_unmatched(table, subject):
        print(f"{alone} of {table['case'].nunique()} cases are patients of their own\n")
    ranked = write_ranking(table, settings, output, title=title)
    print(*ranked.answers["answer"], ranked.verdict, f"written: {output}", sep="\n\n")


@app.command()
def plan(
    study: Annotated[str, typer.Argument(help="A study, or a folder that `quintet rank` wrote.")],
    difference: Annotated[
        float | None, typer.Option(min=0, help="The difference to detect, in the metric's unit; default: as measured.")
    ] = None,
    run_sd: Annotated[float | None, typer.Option(min=0, help="SD between training runs; default: as measured.")] = None,
    power: Annotated[float, typer.Option(help="The probability of detecting the difference.")] = 0.8,
) -> None:
    """Compute how many patients and seeds are needed to establish a difference from the first configuration."""
    from quintet import ranking
    from quintet.experiment import rank_finished
    from quintet.pipeline.dvc import is_outdated
    from quintet.ranking.elsewhere import load_ranking

    if study in set(StudyName):
        os.chdir(repository_root())
        ranked = rank_finished(study, load_params(), Path("runs"))
        if is_outdated(Path.cwd(), f"{study}_rank"):
            print(f"warning: {OUTDATED.format(study=study)}", file=sys.stderr)
    else:
        ranked = load_ranking(Path(study))
    planned = ranking.plan(ranked, power=power, difference=difference, run_sd=run_sd)
    print(planned.table.to_string(index=False), planned.basis, planned.verdict, sep="\n\n")


@app.command()
def promote(
    run: Annotated[str, typer.Argument(help="A folder under runs/ or an MLflow run id.")],
    name: Annotated[str | None, typer.Option(help="Registered model in MLflow; default: quintet-STUDY.")] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Register it although the verdict does not support it.")] = False,
) -> None:
    """Register a trained run's model in MLflow, if no other configuration is significantly better."""
    from quintet.experiment import rank_finished, run_folders
    from quintet.pipeline.dvc import is_outdated
    from quintet.runs import Record
    from quintet.serving import promote as promotion
    from quintet.tracking import resolve_run

    folder = resolve_run(run).resolve()
    known = None if (Path(run) / "record.json").is_file() else run
    os.chdir(repository_root())
    params, study = load_params(), Record.load(folder).study
    name = name or f"quintet-{study}"
    if not anyway and is_outdated(Path.cwd(), f"{study}_rank"):
        raise InputError(f"{OUTDATED.format(study=study)}. --anyway registers the run nonetheless")
    ranking = rank_finished(study, params, Path("runs"))
    ranked = run_folders(params.of(study), Path("runs") / study / "sweep")
    version, against = promotion.promote(run, folder, ranked, ranking, name=name, anyway=anyway, known=known)
    but = f"; but {against}" if against else ""
    print(f"registered: models:/{name}/{version}, also models:/{name}@{promotion.ALIAS}{but}")


class DicomStudy(StrEnum):
    """Studies whose predictions can be written as DICOM objects."""

    landmarks = "landmarks"
    perfusion = "perfusion"


@app.command()
def dicom(
    study: DicomStudy,
    predictions: Annotated[Path, typer.Option(help="What `quintet predict` wrote: a CSV (landmarks), a folder (perfusion).")],
    source: Annotated[Path, typer.Option(help="The images: NAME.dcm (landmarks), a folder CASE per series (perfusion).")],
    output: Annotated[Path, typer.Option(help="Folder for one DICOM file per case.")],
    person_tags: Annotated[bool, typer.Option("--person-tags", help="Copy the images' person tags to these files.")] = False,
) -> None:
    """Write predictions as DICOM objects: structured reports of points (landmarks), segmentations (perfusion)."""
    from quintet.serving import dicom as objects

    require_empty(output, outside=source)
    write = objects.write_reports if study is DicomStudy.landmarks else objects.write_segmentations
    print(f"{write(predictions, source, output, person=person_tags)} DICOM files written: {output}")


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="A folder under runs/ or an MLflow run id, of landmarks or perfusion.")],
    output: Annotated[Path, typer.Option(help="The .onnx file to write.")],
) -> None:
    """Write a trained network as an ONNX file, and compare its outputs under onnxruntime with PyTorch's."""
    from quintet.serving.export import export as export_run
    from quintet.tracking import resolve_run

    require_empty(output)
    difference = export_run(resolve_run(run), output)
    print(f"written: {output}; onnxruntime differs from PyTorch by {difference:.1g} at most")


class Engine(StrEnum):
    local = "local"
    ray = "ray"


@app.command()
def repro(
    targets: Annotated[list[str] | None, typer.Argument(help="Stages or sweeps; default: all stages.")] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Stages at a time; default: by free cores and memory, 1 with a GPU."),
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads per stage; 0: compute.threads, if set, else cores / jobs.")] = 0,
    engine: Engine = Engine.local,
) -> None:
    """Run the stages that are out of date, independent ones concurrently; with the same number of threads, results are equal to
    those of `dvc repro`."""
    from quintet.pipeline import Local, Ray, free_jobs, reproduce, summary

    root = repository_root().resolve()
    os.chdir(root)  # DVC names stages relative to the current folder
    default = parameters.load(root / "params.yaml").compute.threads
    jobs = jobs or free_jobs()
    threads = threads or default or (max(1, (os.cpu_count() or 1) // jobs) if engine is Engine.local else 1)
    try:
        runner = Ray(threads) if engine is Engine.ray else Local(jobs)
        outcome = reproduce(root, runner, targets or [], jobs=jobs, threads=threads)
    except KeyboardInterrupt:
        print("stopped; finished stages are recorded, run the same command again to continue", file=sys.stderr)
        raise SystemExit(130) from None
    print(summary(outcome))
    if outcome.failed:
        raise SystemExit(1)


@app.command()
def sync(
    restore: Annotated[bool, typer.Option("--restore", help="Also upload runs that were deleted in MLflow.")] = False,
) -> None:
    """Upload the runs under runs/ that MLflow does not have yet, except those that were deleted there."""
    from quintet import tracking
    from quintet.runs import finished_runs
    from quintet.serving.model import write_model

    root = repository_root()
    os.chdir(root)
    uploaded, existing, deleted = tracking.sync(root, write_model, restore=restore)
    left_out = f", {deleted} deleted there and left out (--restore uploads them)" if deleted else ""
    store = tracking.without_credentials(tracking.tracking_uri())
    print(f"MLflow {store}: {uploaded} uploaded, {existing} already there{left_out}")
    for name in sorted({record.study for record, _ in finished_runs(root)}):
        study = load_study(name)
        print(f"{name}: {tracking.save_view(name, study.RUN_SCORES, lower_is_better=study.LOWER_IS_BETTER)}")


@app.command()
def times() -> None:
    """Show how long the newest run of each stage took, including start-up and imports."""
    from quintet.stage import times_table

    print(times_table(repository_root()))


def main() -> None:
    with exit_on_user_error("the results"):
        app()
