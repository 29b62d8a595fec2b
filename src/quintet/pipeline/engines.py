"""Where `quintet repro` runs the commands of stages: in processes on this machine, or on the nodes of a Ray cluster.

An engine has `submit(job) -> Future[exit status]` and `stop()`, which kills the running jobs. Stages can be killed at any time:
they resume from their checkpoints and never leave half-written outputs.
"""

import ctypes
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quintet.errors import InputError

KILLED_STATUSES = (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGKILL, 128 + signal.SIGTERM)
STAGE_BYTES = 2 * 2**30  # of a stage at the default scale, with a margin
MAX_RETRIES = 3  # of a stage whose node or process was lost
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


class StageKilledError(Exception):
    """A stage was killed: its node went down, the job was preempted, or the machine ran out of memory."""


@dataclass(frozen=True)
class Job:
    name: str
    commands: list[list[str]]  # run in order until one fails
    folder: str  # working folder of the commands
    log: Path
    environment: dict[str, str]  # in addition to the process's own


def run_job(job: Job, processes: list["subprocess.Popen[bytes]"] | None = None) -> int:
    """Run the commands, append their output to `job.log` and return the exit status.

    The commands are killed with this process. Each started process is appended to `processes`.
    """
    status = 0
    with job.log.open("ab") as log:
        for command in job.commands:
            process = subprocess.Popen(
                command,
                cwd=job.folder,
                env=os.environ | job.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
            if processes is not None:
                processes.append(process)
            if status := process.wait():
                break
    return status


def _die_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def free_jobs() -> int:
    """How many stages this machine has room for: free cores (those that other processes do not use now), a share of the free
    memory for each, and a single one where a GPU would have to be shared."""
    import psutil

    if shutil.which("nvidia-smi"):
        return 1
    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count() or 1
    busy = round(cores * psutil.cpu_percent(interval=0.5) / 100)
    return max(1, min(cores - busy, psutil.virtual_memory().available // STAGE_BYTES))


class Local:
    """Runs at most `jobs` processes on this machine."""

    description = "this machine"

    def __init__(self, jobs: int) -> None:
        self._pool = ThreadPoolExecutor(jobs)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._futures: list[Future[int]] = []

    def submit(self, job: Job) -> "Future[int]":
        self._futures.append(self._pool.submit(run_job, job, self._processes))
        return self._futures[-1]

    def stop(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        while not all(future.done() for future in self._futures):  # repeated, because a thread may just be starting a process
            for process in list(self._processes):
                with suppress(ProcessLookupError):
                    if process.returncode is None:
                        os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.05)
        self._pool.shutdown()


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
