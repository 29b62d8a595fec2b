"""Commands on the environment, data and parameters."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from quintet.cli.common import Data, app, load_params, raw_folder
from quintet.errors import InputError, InputProblemsError
from quintet.files import repository_root
from quintet.params import StudyName
from quintet.study import load_study


class Preset(StrEnum):
    demo = "demo"
    paper = "paper"
    best = "best"
    top3 = "top3"
    smoke = "smoke"


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
