"""Where `quintet repro` runs the commands of stages: in processes on this machine, or on the nodes of a Ray cluster.

An engine has `submit(job) -> Future[exit status]` and `stop()`, which kills the running jobs. Stages can be killed at any time:
they resume from their checkpoints and never leave half-written outputs.
"""

import logging
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quintet.errors import InputError
from quintet.pipeline.preloaded import Preloaded, die_with_parent, script_of

KILLED_STATUSES = (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGKILL, 128 + signal.SIGTERM)
STAGE_BYTES = 2 * 2**30  # of a stage at the default scale, with a margin
MAX_RETRIES = 3  # of a stage whose node or process was lost


class StageKilledError(Exception):
    """A stage was killed: its node went down, the job was preempted, or the machine ran out of memory."""


@dataclass(frozen=True)
class Job:
    name: str
    commands: list[list[str]]  # run in order until one fails
    folder: str  # working folder of the commands
    log: Path
    environment: dict[str, str]  # in addition to the process's own


def run_job(job: Job, started: Callable[[int], None] = lambda _: None, preloaded: Callable[[], Preloaded] | None = None) -> int:
    """Run the commands, append their output to `job.log` and return the exit status.

    The commands are killed with this thread. `started` gets the process id of each, which is also its group's. `preloaded`: gives
    a process for the commands that are scripts of the project.
    """
    status = 0
    for command in job.commands:
        script = script_of(command[-1], job.folder) if preloaded else None
        if preloaded and script:
            status = preloaded().run(script, job.folder, job.environment, job.log, started)
        else:
            with job.log.open("ab") as log:
                process = subprocess.Popen(
                    command,
                    cwd=job.folder,
                    env=os.environ | job.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=die_with_parent,
                )
            started(process.pid)
            status = process.wait()
        if status:
            break
    return status


def free_jobs() -> int:
    """How many stages this machine has room for: one for each core that other processes leave free now, and one more if they use
    any; no more than there is free memory for, and a single one where a GPU would have to be shared.

    Perfusion's 19 stages beside one busy process on 2 cores: two at a time take 1.34 times as long as without it, one at a time
    1.59 times.
    """
    import psutil

    if shutil.which("nvidia-smi"):
        return 1
    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count() or 1
    busy = round(cores * psutil.cpu_percent(interval=0.5) / 100)
    return max(1, min(cores - max(0, busy - 1), psutil.virtual_memory().available // STAGE_BYTES))


class Local:
    """Runs at most `jobs` processes on this machine. Each of its threads has a process with the packages of the stages, unless
    there is a GPU: CUDA does not survive a fork."""

    description = "this machine"

    def __init__(self, jobs: int) -> None:
        self._pool = ThreadPoolExecutor(jobs)
        self._groups: dict[int, int] = {}  # thread -> process group of its command
        self._preloaded: dict[int, Preloaded] = {}  # by thread
        self._futures: list[Future[int]] = []

    def submit(self, job: Job) -> "Future[int]":
        self._futures.append(self._pool.submit(self._run, job))
        return self._futures[-1]

    def _run(self, job: Job) -> int:
        thread = threading.get_ident()

        def preloaded() -> Preloaded:
            if thread not in self._preloaded or not self._preloaded[thread].is_alive():
                self._preloaded[thread] = Preloaded(job.environment)
            return self._preloaded[thread]

        try:
            return run_job(
                job, lambda group: self._groups.update({thread: group}), None if shutil.which("nvidia-smi") else preloaded
            )
        finally:
            self._groups.pop(thread, None)

    def stop(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        while not all(future.done() for future in self._futures):  # repeated, because a thread may just be starting a process
            for group in list(self._groups.values()):
                with suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
            time.sleep(0.05)
        self._pool.shutdown()
        for preloaded in self._preloaded.values():
            preloaded.stop()


class Ray:
    """Runs jobs on the nodes of a running Ray cluster, which see the checkout under the same path.

    A stage gets `threads` CPUs and, if nodes with that many CPUs have GPUs, one GPU. If its node or its process is lost, it is
    submitted again and may run on another node. Raises InputError if no cluster can be used or no node has enough CPUs.
    """

    def __init__(self, threads: int) -> None:
        try:
            import ray
        except ImportError:
            raise InputError(
                "--engine ray: Ray is not installed; run `pip install -c constraints.txt --editable '.[ray]'` on every node"
            ) from None
        address = os.environ.get("RAY_ADDRESS", "auto")
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except RuntimeError as error:  # the cluster has another version of Ray or Python
            raise InputError(f"--engine ray: the cluster at {address} cannot be used: {' '.join(str(error).split())}") from None
        except (ConnectionError, ValueError) as error:
            raise InputError(
                f"--engine ray: no Ray cluster answers at {address} ({str(error).splitlines()[0]}); start one with "
                "`ray start --head --disable-usage-stats`, add other machines with `ray start --address=HEAD:6379`, or set "
                "RAY_ADDRESS to HEAD:6379 (docs/clusters.md)"
            ) from None
        self._ray = ray
        self._refs: list[Any] = []
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        suitable = [node for node in nodes if node.get("CPU", 0) >= threads]
        if not suitable:  # Ray would wait for one forever
            largest = max(node.get("CPU", 0) for node in nodes)
            raise InputError(f"--engine ray: each stage needs {threads} CPUs (--threads), but no node has more than {largest:g}")
        cpus, gpus = (sum(node.get(resource, 0) for node in suitable) for resource in ("CPU", "GPU"))
        self.description = f"{len(suitable)} Ray nodes with {cpus:g} CPUs and {gpus:g} GPUs"
        remote: Any = ray.remote  # its overloads do not accept a list of exceptions
        options = {"num_cpus": threads, "num_gpus": 1 if gpus else 0, "max_retries": MAX_RETRIES}
        self._run = remote(retry_exceptions=[StageKilledError], **options)(_run_on_node)

    def submit(self, job: Job) -> "Future[int]":
        ref = self._run.options(name=job.name).remote(job)
        self._refs.append(ref)
        return ref.future()

    def stop(self) -> None:
        for ref in self._refs:
            self._ray.cancel(ref, force=True)
        self._ray.shutdown()


def _run_on_node(job: Job) -> int:
    if not job.log.parent.is_dir():
        raise InputError(
            f"{socket.gethostname()}: {job.folder} does not exist; "
            "every node must see the checkout under the same path (a shared file system)"
        )
    status = run_job(job)
    if status in KILLED_STATUSES:
        raise StageKilledError(f"{job.name} was killed (exit status {status})")
    return status
