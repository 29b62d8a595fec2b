"""Where `quintet repro` runs the commands of stages: in processes here, or on the nodes of a Ray cluster.

An engine has `submit(job) -> Future[exit status]` and `stop()`, which kills what is running. A stage survives `kill -9`.
"""

import ctypes
import logging
import os
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

LOST = (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGKILL, 128 + signal.SIGTERM)
RETRIES = 3  # of a stage whose node or process was lost
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


class NodeLostError(Exception):
    """The stage did not end, it was killed: by a node that goes down, a preemption, the kernel's memory killer."""


@dataclass(frozen=True)
class Job:
    name: str
    commands: list[list[str]]  # in order, until one fails
    folder: str  # where they run
    log: Path
    environment: dict[str, str]  # beside the process's own


def run(job: Job, started: list["subprocess.Popen[bytes]"] | None = None) -> int:
    """Run the commands, their output appended to `log`; the exit status. They die with this process."""
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
            if started is not None:
                started.append(process)
            if status := process.wait():
                break
    return status


def _die_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Local:
    """At most `jobs` processes on this machine."""

    where = "this machine"

    def __init__(self, jobs: int) -> None:
        self._pool = ThreadPoolExecutor(jobs)
        self._started: list[subprocess.Popen[bytes]] = []
        self._futures: list[Future[int]] = []

    def submit(self, job: Job) -> "Future[int]":
        self._futures.append(self._pool.submit(run, job, self._started))
        return self._futures[-1]

    def stop(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        while not all(future.done() for future in self._futures):  # a thread may be starting its process just now
            for process in list(self._started):
                with suppress(ProcessLookupError):
                    if process.returncode is None:
                        os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.05)
        self._pool.shutdown()


class Ray:
    """The nodes of a running cluster that see the checkout under the same path.

    A stage gets `threads` CPUs and, where nodes with so many have GPUs, one. It is sent again, elsewhere if need be, when its
    node or its process was lost.
    """

    def __init__(self, threads: int) -> None:
        try:
            import ray
        except ImportError:
            raise InputError(
                "--engine ray: Ray is not installed; `pip install -c constraints.txt --editable '.[ray]'` on every node"
            ) from None
        address = os.environ.get("RAY_ADDRESS", "auto")
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except RuntimeError as error:  # another version of Ray or Python there
            raise InputError(f"--engine ray: the cluster at {address} cannot be used: {' '.join(str(error).split())}") from None
        except (ConnectionError, ValueError) as error:
            raise InputError(
                f"--engine ray: no Ray cluster answers at {address} ({str(error).splitlines()[0]}); start one with "
                "`ray start --head --disable-usage-stats`, join other machines with `ray start --address=HEAD:6379`, or set "
                "RAY_ADDRESS to HEAD:6379 (docs/clusters.md)"
            ) from None
        self._ray = ray
        self._refs: list[Any] = []
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        able = [node for node in nodes if node.get("CPU", 0) >= threads]
        if not able:  # Ray would wait for one forever
            largest = max(node.get("CPU", 0) for node in nodes)
            raise InputError(f"--engine ray: a stage wants {threads} CPUs (--threads) and no node has more than {largest:g}")
        cpus, gpus = (sum(node.get(kind, 0) for node in able) for kind in ("CPU", "GPU"))
        self.where = f"{len(able)} Ray nodes with {cpus:g} CPUs and {gpus:g} GPUs"
        remote: Any = ray.remote  # its overloads do not know a list of exceptions
        self._run = remote(num_cpus=threads, num_gpus=1 if gpus else 0, max_retries=RETRIES, retry_exceptions=[NodeLostError])(
            _run_on_node
        )

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
            f"{socket.gethostname()}: {job.folder} is not there; "
            "every node must see the checkout under the same path (a shared file system)"
        )
    status = run(job)
    if status in LOST:
        raise NodeLostError(f"{job.name} was killed (exit status {status})")
    return status
