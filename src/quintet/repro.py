"""Run the stale stages of dvc.yaml in parallel. DVC keeps the books (what is stale, what was run), an engine runs the commands.

A stage is treated as `dvc repro` treats it: left alone where nothing changed, restored where DVC's run cache knows it, else its
outputs are removed, its command is run and what came out is recorded. But it waits only for the stages that it depends on,
and one that fails costs only those that depend on it.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from quintet.engines import Job
from quintet.errors import InputError

LOGS = Path("logs") / "repro"
TAIL = 12  # lines of a failed stage's log that are shown


class Engine(Protocol):
    where: str

    def submit(self, job: Job) -> "Future[int]": ...

    def stop(self) -> None: ...


@dataclass
class Outcome:
    ran: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # stage -> why
    skipped: dict[str, str] = field(default_factory=dict)  # stage -> the failed one that it waits for


class Books:
    """DVC's view of the checkout at `root`: the stages, what each waits for, and the record of what was run."""

    def __init__(self, root: Path) -> None:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        logging.getLogger("dvc").setLevel(logging.WARNING)  # its advice after each stage
        try:
            self.repo = Repo(str(root), _wait_for_lock=True)
            self.graph = self.repo.index.graph  # an edge leads from a stage to one that it waits for
        except DvcException as error:
            raise InputError(f"{root}: {error}; `quintet repro` runs in a clone of the project") from None
        self.stages = {stage.addressing: stage for stage in self.graph}

    def order(self, targets: Sequence[str]) -> list[str]:
        """The targets (default: every stage) and what they need, those that are waited for first; frozen stages need nothing."""
        import networkx
        from dvc.repo.reproduce import get_active_graph

        needs = get_active_graph(self.graph)
        chosen = [self.stages[name] for target in targets for name in self._named(target)] or list(self.graph)
        wanted = set(chosen).union(*(networkx.descendants(needs, stage) for stage in chosen))
        rank = {name: place for place, name in enumerate(self.stages)}  # dvc.yaml's order where the graph leaves it open
        sorter = networkx.lexicographical_topological_sort
        return [s.addressing for s in sorter(self.graph.subgraph(wanted).reverse(), key=lambda s: rank[s.addressing])]

    def _named(self, target: str) -> list[str]:
        """A stage, or all cells of a sweep."""
        if found := [name for name in self.stages if target in (name, name.partition("@")[0])]:
            return found
        raise InputError(f"{target}: dvc.yaml has no such stage; `dvc stage list --name-only` lists them")

    def waits_for(self, name: str) -> set[str]:
        return {stage.addressing for stage in self.graph.successors(self.stages[name])}

    def stale(self, name: str) -> bool:
        with self._open():
            return bool(self.stages[name].status())

    def runs(self, name: str) -> bool:
        """Whether a command makes its outputs: not those of `dvc add`, nor those of a frozen stage."""
        return bool(self.stages[name].cmd) and not self.stages[name].frozen

    def commands(self, name: str) -> list[list[str]]:
        """Each in DVC's shell: the user's, without its start-up files."""
        from dvc.stage.run import _make_cmd, get_executable

        cmd = self.stages[name].cmd
        return [_make_cmd(get_executable(), line) for line in (cmd if isinstance(cmd, list) else cmd.splitlines())]

    def restored(self, name: str) -> bool:
        """Whether DVC's run cache had the stage with these inputs; its outputs are in place then."""
        from dvc.stage.cache import RunCacheNotFoundError

        stage = self.stages[name]
        with self._open():
            try:
                self.repo.stage_cache.restore(stage)
            except RunCacheNotFoundError:
                return False
            self._record(stage)
        return True

    def remove_outputs(self, name: str) -> None:
        with self._open():
            self.stages[name].remove_outs()

    def record(self, name: str, claim: ExitStack) -> None:
        """Record what came out. The claim on its paths ends once DVC is locked: nobody may find it unrecorded and unclaimed."""
        with self._open():
            claim.close()
            self._record(self.stages[name])

    def _record(self, stage: Any) -> None:
        stage.save(run_cache=all(out.use_cache or out.is_metric or out.is_plot for out in stage.outs))  # DVC's own condition
        stage.commit()
        stage.dump(update_pipeline=False)

    @contextmanager
    def _open(self) -> Iterator[None]:
        from dvc.repo import lock_repo

        with lock_repo(self.repo), self.repo.scm_context():
            yield

    @contextmanager
    def claimed(self, name: str) -> Iterator[None]:
        """DVC's own locks on the paths of a stage: a `dvc repro` beside this one leaves it alone, and the other way round."""
        from dvc.rwlock import rwlock

        stage, config = self.stages[name], self.repo.config["core"]
        deps, outs = ([item.fs_path for item in items] for items in (stage.deps, stage.outs))
        hardlink = config.get("hardlink_lock", False)
        with rwlock(self.repo.tmp_dir, self.repo.fs, f"quintet repro: {name}", deps, outs, hardlink):
            yield


def repro(
    root: Path, engine: Engine, targets: Sequence[str] = (), *, jobs: int, threads: int, say: Callable[[str], None] = print
) -> Outcome:
    """Bring the targets up to date with at most `jobs` stages at a time, each with `threads` threads.

    Ctrl-C kills what runs and leaves what ended recorded: the same command again goes on from there.
    """
    books = Books(root)
    names = books.order(targets)
    say(f"{len(names)} stages, {jobs} at a time with {_count(threads, 'thread')} each, on {engine.where}")
    (root / LOGS).mkdir(parents=True, exist_ok=True)
    run = _Run(root, books, engine, threads, say)
    waiting = dict.fromkeys(names)
    try:
        while waiting or run.running:
            for name in [n for n in waiting if not books.waits_for(n) & (waiting.keys() | run.running.keys())]:
                if len(run.running) < jobs:
                    del waiting[name]
                    run.start(name)
            if run.running:
                run.collect()
    finally:
        engine.stop()
        run.release()
    return run.outcome


class _Run:
    def __init__(self, root: Path, books: Books, engine: Engine, threads: int, say: Callable[[str], None]) -> None:
        self.root, self.books, self.engine, self.say = root, books, engine, say
        self.outcome = Outcome()
        self.running: dict[str, tuple[Future[int], float, ExitStack]] = {}
        own = {"DVC_ROOT": str(root), "PATH": os.environ["PATH"], "QUINTET_THREADS": str(threads)}
        self.environment = own | {k: v for k, v in os.environ.items() if k.startswith(("MLFLOW_", "DVC_EXP"))}

    def start(self, name: str) -> None:
        """Begin a stage, unless something that it waits for failed, nothing changed, or DVC has what would come out."""
        from dvc.lock import LockError

        lost = self.outcome.failed.keys() | self.outcome.skipped.keys()
        if (broken := self.books.waits_for(name) & lost) and not self.books.stages[name].frozen:
            first = sorted(broken)[0]
            self.outcome.skipped[name] = self.outcome.skipped.get(first, first)
            return
        claim = ExitStack()
        try:
            if not self.books.stale(name):
                self.outcome.unchanged.append(name)
                return
            if not self.books.runs(name):  # changed data of the user's is recorded, never removed
                self.books.record(name, claim)
                self.outcome.unchanged.append(name)
                return
            self.books.remove_outputs(name)  # first, as DVC does: restoring over what its cache lacks would ask or fail
            if self.books.restored(name):
                self.outcome.restored.append(name)
                self.say(f"  {name}: restored from DVC's cache")
                return
            claim.enter_context(self.books.claimed(name))
        except LockError as error:  # another process of DVC has its paths
            self.outcome.failed[name] = str(error)
            return
        except Exception as error:  # a dependency that is not there, a damaged lock: this stage fails, the others go on
            self.outcome.failed[name] = f"{type(error).__name__}: {error}"
            return
        log = self.root / LOGS / f"{name}.log"
        log.unlink(missing_ok=True)
        job = Job(name, self.books.commands(name), self.books.stages[name].wdir, log, self.environment | {"DVC_STAGE": name})
        with claim:  # given back if Ctrl-C comes now
            self.running[name] = (self.engine.submit(job), time.monotonic(), claim.pop_all())
        self.say(f"  {name}: started")

    def collect(self) -> None:
        """Wait for one stage or more to end, and record them."""
        ended, _ = wait([future for future, _, _ in self.running.values()], return_when=FIRST_COMPLETED)
        for name in [name for name, (future, _, _) in self.running.items() if future in ended]:
            future, began, claim = self.running[name]
            reason = self._finish(name, future, claim)
            del self.running[name]  # not before: after Ctrl-C, `release` records what is still here
            seconds = time.monotonic() - began
            if reason is None:
                self.outcome.ran.append(name)
                self.say(f"  {name}: done in {seconds:.1f} s")
            else:
                self.outcome.failed[name] = reason
                self.say(f"  {name}: FAILED after {seconds:.1f} s")

    def _finish(self, name: str, future: "Future[int]", claim: ExitStack) -> str | None:
        log = self.root / LOGS / f"{name}.log"
        try:
            with claim:
                status = future.result()
                if status == 0:
                    self.books.record(name, claim)
                    return None
            text = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
            return "\n".join([f"exit status {status}; {log.relative_to(self.root)} ends with", *(f"    {line}" for line in text)])
        except Exception as error:  # a lost node, an output that is not there: this stage fails, the others go on
            error = getattr(error, "cause", None) or error  # Ray wraps what was raised on a node
            return f"{type(error).__name__}: {error} ({log.relative_to(self.root)})"

    def release(self) -> None:
        """After the engine was stopped: what had ended by itself is recorded all the same."""
        for name, (future, _, claim) in self.running.items():
            if future.done():
                self._finish(name, future, claim)
            claim.close()


def summary(outcome: Outcome) -> str:
    """What happened, failures last."""
    parts = [(outcome.ran, "run"), (outcome.restored, "restored from DVC's cache"), (outcome.unchanged, "up to date")]
    lines = [", ".join(f"{len(names)} {what}" for names, what in parts)]
    lines += [f"{name}: not run, it waits for {of}" for name, of in outcome.skipped.items()]
    lines += [f"{name} FAILED: {reason}" for name, reason in outcome.failed.items()]
    return "\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
