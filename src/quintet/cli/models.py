"""Commands that apply trained runs, or take them elsewhere."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from quintet.cli.common import OUTDATED, Data, Device, app, load_params, raw_folder, require_empty
from quintet.errors import InputError
from quintet.files import reject_overlap, repository_root
from quintet.params import StudyName
from quintet.study import load_study

Runs = Annotated[
    list[str], typer.Option("--model", help="A folder under runs/ or an MLflow run id; repeat it to average several runs.")
]


class RetrievalStudy(StrEnum):
    """Studies whose cases can be searched for similar ones."""

    ct = "ct"


class DicomStudy(StrEnum):
    """Studies whose predictions can be written as DICOM objects."""

    landmarks = "landmarks"
    perfusion = "perfusion"


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
