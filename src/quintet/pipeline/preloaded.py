"""A process that has imported the packages of the stages' scripts, and forks a child for each script: imports are paid once.

The project's own modules are not imported beforehand, because they may be edited while the pipeline runs.
"""

import ctypes
import gc
import importlib
import json
import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

PACKAGES = (
    *("albumentations", "lightning.pytorch", "matplotlib.pyplot", "mlflow.pyfunc", "monai.networks.nets", "nibabel", "pandas"),
    *("pydicom", "scipy.stats", "skimage.exposure", "sklearn.linear_model", "torchmetrics", "yaml"),
)
SHELL_SYNTAX = frozenset(";&|<>$`*?(){}[]!~#\\\n")
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have this process killed when the thread that started it ends."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def script_of(command: str, folder: str) -> list[str] | None:
    """Script and arguments of a plain `python stages/SCRIPT.py ...` for this interpreter; None for any other command."""
    if SHELL_SYNTAX & set(command):
        return None
    name, *arguments = shlex.split(command) or [""]
    found = shutil.which(name) if name == "python" else None
    if not found or Path(found).parent != Path(sys.executable).parent or not arguments:
        return None
    return arguments if Path(arguments[0]).parent == Path("stages") and Path(folder, arguments[0]).is_file() else None


class Preloaded:
    """One such process, which runs one script at a time; it ends with the thread that started it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        threads = environment.get("QUINTET_THREADS", "0")
        limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads) if threads != "0" else {}
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from quintet.pipeline.preloaded import serve; serve()"],
            env=os.environ | dict(environment) | limits,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )

    def run(
        self, script: list[str], folder: str, environment: Mapping[str, str], log: Path, started: Callable[[int], None]
    ) -> int:
        """Run a script, append its output to `log` and return its exit status (negative: a signal). `started` gets its process
        id, which is also its group's."""
        request, answer = self._process.stdin, self._process.stdout
        assert request is not None
        assert answer is not None
        with suppress(BrokenPipeError):
            request.write(json.dumps([script, folder, os.environ | dict(environment), str(log)]) + "\n")
            request.flush()
            if child := answer.readline():
                started(int(child))
        status = answer.readline()
        return int(status) if status else -signal.SIGKILL

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


def serve() -> None:
    """Read scripts from standard input, fork a child for each, and write its process id and, when it ends, its status."""
    for name in PACKAGES:
        with suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a child's garbage collection must not copy the pages that it shares
    for line in iter(sys.stdin.readline, ""):
        script, folder, environment, log = json.loads(line)
        child = os.fork()
        if child == 0:
            return _become(script, folder, environment, log)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _become(script: list[str], folder: str, environment: dict[str, str], log: str) -> None:
    os.setsid()
    die_with_parent()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)):
        os.dup2(os.open(path, flags), number)
    os.dup2(1, 2)
    sys.argv, sys.path[0] = script, str(Path(folder, script[0]).parent)
    runpy.run_path(script[0], run_name="__main__")
