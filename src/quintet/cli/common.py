"""The application, and what its commands share."""

from pathlib import Path
from typing import Annotated

import typer

from quintet import params as parameters
from quintet.errors import InputError
from quintet.files import repository_root
from quintet.params import StudyName

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Check data, apply trained runs, rank results, and run the pipeline of five medical-imaging studies.",
)

Data = Annotated[Path | None, typer.Option(help="A raw folder; default: the study's `raw` in params.yaml.")]
OUTDATED = "runs have changed since they were ranked, and may not belong together; run `dvc repro {study}_rank` first"
Device = Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda or mps.")]


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
