"""Run the stale stages of dvc.yaml concurrently. DVC decides what is stale and records what was run; an engine runs the commands.

Each stage is treated as by `dvc repro`: skipped if nothing changed, restored if it is in DVC's run cache; otherwise its outputs
are removed, its command is run and its outputs are recorded. But it starts as soon as its own dependencies are done, and a
failure affects only the stages that depend on it.
"""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Protocol

from quintet.errors import InputError
from quintet.pipeline.dvc import DvcPipeline
from quintet.pipeline.engines import Job

LOG_FOLDER = Path("logs") / "repro"
LOG_TAIL = 12  # lines of a failed stage's log that are shown


class Engine(Protocol):
    """Runs the commands of stages; `description` names the place."""

    description: str

    def submit(self, job: Job) -> "Future[int]": ...

    def stop(self) -> None: ...


@dataclass
class Outcome:
    ran: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # stage -> reason
    skipped: dict[str, str] = field(default_factory=dict)  # stage -> the failed stage that it depends on


def reproduce(
    root: Path, engine: Engine, targets: Sequence[str] = (), *, jobs: int, threads: int, log: Callable[[str], None] = print
) -> Outcome:
    """Bring the targets up to date, running at most `jobs` stages at a time with `threads` threads each.

    Ctrl-C kills running stages; finished ones are recorded, so that the same command continues from there.
    """
    pipeline = DvcPipeline(root)
    names = pipeline.execution_order(targets)
    log(f"{len(names)} stages, {jobs} at a time with {_count(threads, 'thread')} each, on {engine.description}")
    (root / LOG_FOLDER).mkdir(parents=True, exist_ok=True)
    scheduler = _Scheduler(root, pipeline, engine, threads, log, names)
    waiting = dict.fromkeys(names)
    try:
        while waiting or scheduler.running:
            for name in [n for n in waiting if not pipeline.dependencies(n) & (waiting.keys() | scheduler.running.keys())]:
                if len(scheduler.running) < jobs:
                    del waiting[name]
                    scheduler.start(name)
            if scheduler.running:
                scheduler.collect()
    finally:
        engine.stop()
        scheduler.release()
    return scheduler.outcome


@dataclass
class _RunningStage:
    future: "Future[int]"
    started: float
    lock: ExitStack


class _Scheduler:
    def __init__(
        self, root: Path, pipeline: DvcPipeline, engine: Engine, threads: int, log: Callable[[str], None], names: Sequence[str]
    ) -> None:
        self.root, self.pipeline, self.engine, self.log = root, pipeline, engine, log
        usual = {name: pipeline.usual_seconds(name) for name in names}
        known = [seconds for seconds in usual.values() if seconds]
        self.usual = {name: seconds or (mean(known) if known else 1.0) for name, seconds in usual.items()}
        self.begun = time.monotonic()
        self.outcome = Outcome()
        self.running: dict[str, _RunningStage] = {}
        own = {"DVC_ROOT": str(root), "PATH": os.environ["PATH"], "QUINTET_THREADS": str(threads)}
        self.environment = own | {k: v for k, v in os.environ.items() if k.startswith(("MLFLOW_", "DVC_EXP"))}

    def start(self, name: str) -> None:
        """Start a stage, unless a dependency failed, nothing changed, or its outputs are in DVC's run cache."""
        unavailable = self.outcome.failed.keys() | self.outcome.skipped.keys()
        if (broken := self.pipeline.dependencies(name) & unavailable) and not self.pipeline.is_frozen(name):
            first = sorted(broken)[0]
            self.outcome.skipped[name] = self.outcome.skipped.get(first, first)
            return
        lock = ExitStack()
        try:
            if self._update_without_running(name, lock):
                return
            lock.enter_context(self.pipeline.locked(name))
        except Exception as error:  # a missing dependency, paths locked by another DVC: only this stage fails
            self.outcome.failed[name] = _reason(error)
            return
        path = self.root / LOG_FOLDER / f"{name}.log"
        path.unlink(missing_ok=True)
        environment = self.environment | {"DVC_STAGE": name}
        job = Job(name, self.pipeline.commands(name), self.pipeline.working_folder(name), path, environment)
        with lock:  # releases it if Ctrl-C comes now
            self.running[name] = _RunningStage(self.engine.submit(job), time.monotonic(), lock.pop_all())
        self.log(f"  {name}: started")

    def _update_without_running(self, name: str, lock: ExitStack) -> bool:
        """Whether the stage is up to date already, or is so once it was recorded or restored."""
        if not self.pipeline.is_stale(name):
            self.outcome.unchanged.append(name)
            return True
        if not self.pipeline.can_run(name):  # the user's own data changed: record it, never remove it
            self.pipeline.record(name, lock)
            self.outcome.unchanged.append(name)
            return True
        self.pipeline.require_dependencies(name)
        self.pipeline.remove_outputs(name)  # first, as DVC does: restoring over files that are not in its cache asks or fails
        if self.pipeline.restore(name):
            self.outcome.restored.append(name)
            self.log(f"  {name}: restored from DVC's cache")
            return True
        return False

    def collect(self) -> None:
        """Wait until at least one stage has ended, and record each that has."""
        ended, _ = wait([stage.future for stage in self.running.values()], return_when=FIRST_COMPLETED)
        for name, stage in [(name, stage) for name, stage in self.running.items() if stage.future in ended]:
            reason = self._finish(name, stage)
            del self.running[name]  # only now: after Ctrl-C, `release` records what is still listed
            seconds = time.monotonic() - stage.started
            if reason is None:
                self.outcome.ran.append(name)
                self.log(f"  {name}: done in {seconds:.1f} s{self._progress()}")
            else:
                self.outcome.failed[name] = reason
                self.log(f"  {name}: FAILED after {seconds:.1f} s")

    def _progress(self) -> str:
        """How many stages are done, running and left, and the time left: as usual, times the factor by which the stages so far
        were slower or faster. It is less if some of those that are left turn out to be up to date."""
        outcome = self.outcome
        ended = {*outcome.ran, *outcome.restored, *outcome.unchanged, *outcome.failed, *outcome.skipped}
        left = self.usual.keys() - ended - self.running.keys()
        if not (left or self.running):
            return ""
        half_done = sum(self.usual[name] for name in self.running) / 2
        done = sum(self.usual[name] for name in outcome.ran) + half_done
        to_do = sum(self.usual[name] for name in left) + half_done
        minutes = max(1, round((time.monotonic() - self.begun) * to_do / done / 60))
        counts = f"{len(ended)} of {len(self.usual)} done, {len(self.running)} running, {len(left)} left"
        return f" ({counts}, at most about {minutes} min)"

    def _finish(self, name: str, stage: _RunningStage) -> str | None:
        """Record an ended stage and release its lock; the reason if it failed."""
        path = self.root / LOG_FOLDER / f"{name}.log"
        try:
            with stage.lock:
                status = stage.future.result()
                if status == 0:
                    self.pipeline.record(name, stage.lock)
                    return None
            tail = path.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL:]
            lines = [f"exit status {status}; the end of {path.relative_to(self.root)}:", *(f"    {line}" for line in tail)]
            return "\n".join(lines)
        except Exception as error:  # a lost node, a missing output: only this stage fails
            return f"{_reason(error)} ({path.relative_to(self.root)})"

    def release(self) -> None:
        """After the engine was stopped: record the stages that had ended by themselves, and release all locks."""
        for name, stage in self.running.items():
            if stage.future.done():
                self._finish(name, stage)
            stage.lock.close()


def _reason(error: Exception) -> str:
    from dvc.exceptions import DvcException

    error = getattr(error, "cause", None) or error  # Ray wraps an exception that was raised on a node
    return str(error) if isinstance(error, DvcException | InputError) else f"{type(error).__name__}: {error}"


def summary(outcome: Outcome) -> str:
    """What happened, failures last."""
    parts = [(outcome.ran, "run"), (outcome.restored, "restored from DVC's cache"), (outcome.unchanged, "up to date")]
    lines = [", ".join(f"{len(names)} {what}" for names, what in parts)]
    lines += [f"{name}: not run, it depends on {failed}, which failed" for name, failed in outcome.skipped.items()]
    lines += [f"{name} FAILED: {reason}" for name, reason in outcome.failed.items()]
    return "\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
