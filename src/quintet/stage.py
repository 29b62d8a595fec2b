"""What all scripts in stages/ share: they read parameters, print a summary, and end bad input with one clear error."""

import argparse
import csv
import gc
import importlib
import inspect
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from threadpoolctl import threadpool_limits

from quintet import params as parameters
from quintet.errors import InputError, exit_on_user_error
from quintet.files import md5, repository_root

TIMES = Path("logs") / "stages.csv"


def run_stage(main: Callable[..., str], *, imports: str | tuple[str, ...]) -> None:
    """Run `main(params, ...)` as a script: its other arguments become required --options, and its return value is printed last.

    The code is that of the checkout in which the script runs. A stage of DVC fails if its code or parameters changed meanwhile:
    DVC hashes them only when the stage has ended.

    The modules in `imports` are imported (and timed) after the parameters have been validated, so that a wrong value is reported
    before torch is imported. Bad input ends with exit code 2 and no traceback.
    """
    _use_code_of_this_checkout()
    parser = argparse.ArgumentParser(description=inspect.getdoc(main))
    for name, argument in list(inspect.signature(main).parameters.items())[1:]:
        parser.add_argument(f"--{name.replace('_', '-')}", type=argument.annotation, required=True)
    options = vars(parser.parse_args())
    started = psutil.Process().create_time()
    with exit_on_user_error("an output of this stage"):
        params = _with_threads(parameters.load())
        before = _dependencies(options)
        with _garbage_collection_off():
            for name in (imports,) if isinstance(imports, str) else imports:
                importlib.import_module(name)
        ready = time.time()
        summary = main(params, **options)
        after = _dependencies(options)
        if changed := [name for name in before if after.get(name) != before[name]]:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise InputError(f"{', '.join(changed[:3])}{more}: edited while this stage ran; run it again")
    name = _dvc_stage() or Path(sys.argv[0]).stem
    seconds = time.time() - started
    print(f"{name}: {summary} ({seconds:.1f} s, of which {ready - started:.1f} s start-up and imports)", flush=True)
    with suppress(OSError):  # a finished stage must not fail because its time cannot be logged
        append_time(name, started, ready - started, seconds)


def _use_code_of_this_checkout() -> None:
    """Start this script again with the package in ./src, if another checkout's is installed: DVC runs queued experiments in a
    copy of the checkout, hashes the copy's code, and would run the other."""
    own = Path.cwd() / "src"
    if (own / "quintet").is_dir() and not Path(__file__).resolve().is_relative_to(own.resolve()):
        path = os.pathsep.join(filter(None, [str(own), os.environ.get("PYTHONPATH")]))
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"PYTHONPATH": path})


def _dependencies(options: dict[str, Any]) -> dict[str, str]:
    """What DVC will record as the code and the parameters of this stage: hashes of the Python files (name -> hash) and values of
    the parameters. Empty outside DVC."""
    stages = yaml.load(Path("dvc.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)["stages"] if _dvc_stage() else {}
    stage = stages.get(_dvc_stage().partition("@")[0], {})
    stage = stage.get("do", stage)
    code = [Path(path) for path in stage.get("deps", []) if path.startswith(("src/", "stages/"))]
    files = [file for path in code for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    found = {str(file): md5(file) for file in files if file.is_file()}
    values = yaml.load(Path("params.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader) if stage else {}
    for name in stage.get("params", []):
        value, key = values, re.sub(r"\$\{.*?\}", str(options.get("config")), name)  # of a sweep's stage, its configuration
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        found[key] = repr(value)
    return found


def _dvc_stage() -> str:
    return os.environ.get("DVC_STAGE", "")


def _with_threads(params: parameters.Params) -> parameters.Params:
    """Limit the threads of BLAS and OpenMP, whose results depend on them, as `quintet repro` or the parameters say: through the
    environment for libraries that are yet to be loaded, and directly for those that a script's imports have loaded."""
    value = os.environ.get("QUINTET_THREADS", str(params.compute.threads))
    if not value.isdecimal():
        raise InputError(f"QUINTET_THREADS={value}: expected a number of threads (0: all cores); unset it to use compute.threads")
    threads = int(value)
    if threads:
        os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        threadpool_limits(threads)
    return params.model_copy(update={"compute": params.compute.model_copy(update={"threads": threads})})


@contextmanager
def _garbage_collection_off() -> Iterator[None]:
    """Garbage collection takes 1.4 s of 7 s of imports and another 1.6 s at exit, for the objects that they create."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def append_time(name: str, started: float, start_up: float, seconds: float) -> None:
    """Append to logs/stages.csv, which `quintet times` adds up."""
    path = repository_root() / TIMES
    path.parent.mkdir(exist_ok=True)
    cut = path.is_file() and path.read_bytes()[-1:] not in (b"", b"\n")  # a line that a kill or a full disk cut short
    with path.open("a", newline="", encoding="utf-8") as file:
        file.write("\n" if cut else "")
        csv.writer(file).writerow([name, f"{started:.2f}", f"{start_up:.2f}", f"{seconds:.2f}"])


def newest_times(root: Path) -> dict[str, tuple[float, float, float]]:
    """Stage -> start time, start-up time and total time (s) of its newest run here."""
    path = root / TIMES
    if not path.is_file():
        return {}
    times = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.reader(file):
            with suppress(ValueError):  # a line cut short
                name, started, start_up, total = row
                times[name] = (float(started), float(start_up), float(total))
    return times


def times_table(root: Path) -> str:
    """The newest run of each stage and the sums, as text."""
    rows = newest_times(root)
    if not rows:
        raise InputError(f"{root / TIMES}: no stage has run here yet")
    lines = [
        f"{name:32} {start_up:8.1f} {total:8.1f}"
        for name, (_, start_up, total) in sorted(rows.items(), key=lambda item: item[1][0])
    ]
    sums = [sum(r[i] for r in rows.values()) for i in (1, 2)]
    header = f"{'stage':32} {'start-up':>8} {'all':>8}  seconds"
    return "\n".join([header, *lines, f"{'all ' + str(len(rows)) + ' processes':32} {sums[0]:8.1f} {sums[1]:8.1f}"])
