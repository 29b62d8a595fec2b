"""Commands on the pipeline and its results."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from quintet import params as parameters
from quintet.cli.common import OUTDATED, app, load_params, require_empty
from quintet.errors import InputError
from quintet.files import repository_root
from quintet.params import StudyName
from quintet.study import load_study


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
    if ERRORS.search(metric) and not lower_is_better:
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
