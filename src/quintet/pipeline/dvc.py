"""DVC's view of a checkout: the stages, their dependencies, what is stale, and the record of what was run.

The only module that uses DVC's private functions. `check_dvc` compares the installed version with the range that they were tried
with, because DVC may rename or remove them in any release.
"""

import logging
import pkgutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from quintet.errors import InputError
from quintet.files import atomic_file

TRIED_VERSIONS = ((3, 61), (3, 67))  # the oldest and the newest; constraints.txt pins one in between
PRIVATE_NAMES = (
    "dvc.repo:Repo.scm_context",
    "dvc.repo:lock_repo",
    "dvc.repo.reproduce:get_active_graph",
    "dvc.rwlock:rwlock",
    "dvc.stage:Stage.commit",
    "dvc.stage:Stage.dump",
    "dvc.stage:Stage.remove_outs",
    "dvc.stage:Stage.save",
    "dvc.stage:Stage.status",
    "dvc.stage.cache:RunCacheNotFoundError",
    "dvc.stage.cache:StageCache.restore",
    "dvc.stage.run:_make_cmd",
    "dvc.stage.run:get_executable",
    "dvc.stage.serialize:to_lockfile",
    "dvc.utils.serialize:dumps_yaml",
)


def check_dvc() -> None:
    """Raise InputError if the installed DVC is outside TRIED_VERSIONS or lacks one of PRIVATE_NAMES."""
    from dvc import __version__ as version

    oldest, newest = TRIED_VERSIONS
    remedy = (
        f"`quintet repro` was tried with DVC {_dotted(oldest)} to {_dotted(newest)}; use `dvc repro` instead (one stage at a "
        "time, same results), or `pip install -c constraints.txt dvc`"
    )
    if not oldest <= tuple(int(part) for part in version.split(".")[:2]) <= newest:
        raise InputError(f"DVC {version} is installed. {remedy}")
    for name in PRIVATE_NAMES:
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            raise InputError(f"DVC {version} has no {name.replace(':', '.')}. {remedy}") from None


def _reject_conflicts(root: Path) -> None:
    """Raise InputError if a merge left conflict markers in one of DVC's files."""
    for name in ("dvc.lock", "dvc.yaml", "params.yaml"):
        path = root / name
        if path.is_file() and any(line.startswith(b"<<<<<<< ") for line in path.read_bytes().splitlines()):
            lock = f"`git checkout --theirs {name}` (or --ours), then `dvc repro`, which corrects what does not fit"
            raise InputError(f"{path} has conflict markers; {lock if name == 'dvc.lock' else 'choose one version of each part'}")


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def cache_folder(root: Path) -> Path:
    from dvc.repo import Repo

    return Path(Repo(str(root)).cache.local.path)


def reproducible_outputs(root: Path) -> list[tuple[str, str]]:
    """(MD5, path) of each recorded output that a stage can make again: not of `dvc add` and not of frozen stages."""
    from dvc.repo import Repo

    stages = [stage for stage in Repo(str(root)).index.stages if stage.cmd and not stage.frozen]
    return [(out.hash_info.value, out.fs_path) for stage in stages for out in stage.outs if out.hash_info]


class DvcPipeline:
    """The stages of the checkout at `root`. Raises InputError if it is no DVC project, its files have conflict markers, or
    `check_dvc` fails."""

    def __init__(self, root: Path) -> None:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        check_dvc()
        _reject_conflicts(root)
        logging.getLogger("dvc").setLevel(logging.WARNING)  # hides its hints after each stage
        try:
            self.repo = Repo(str(root), _wait_for_lock=True)
            self.graph = self.repo.index.graph  # an edge leads from a stage to one of its dependencies
        except DvcException as error:
            raise InputError(f"{root}: {error}; `quintet repro` runs in a clone of the project") from None
        self.stages = {stage.addressing: stage for stage in self.graph}

    def execution_order(self, targets: Sequence[str]) -> list[str]:
        """The targets (default: every stage) and their dependencies: first those for which most others wait, so that as many as
        possible can run side by side. That puts dependencies first, too. A frozen stage has none."""
        import networkx
        from dvc.repo.reproduce import get_active_graph

        active = get_active_graph(self.graph)
        selected = [self.stages[name] for target in targets for name in self._matching(target)] or list(self.graph)
        needed = set(selected).union(*(networkx.descendants(active, stage) for stage in selected))
        graph, position = self.graph.subgraph(needed), list(self.stages)  # dvc.yaml's order where equally many wait
        order = {s.addressing: (-len(networkx.ancestors(graph, s)), position.index(s.addressing)) for s in needed}
        return sorted(order, key=order.__getitem__)

    def _matching(self, target: str) -> list[str]:
        """One stage, or all runs of a sweep."""
        if names := [name for name in self.stages if target in (name, name.partition("@")[0])]:
            return names
        raise InputError(f"{target}: dvc.yaml has no such stage; `dvc stage list --name-only` lists them")

    def dependencies(self, name: str) -> set[str]:
        return {stage.addressing for stage in self.graph.successors(self.stages[name])}

    def usual_seconds(self, name: str) -> float | None:
        """What dvc.yaml says in the stage's `meta`."""
        return (self.stages[name].meta or {}).get("seconds")

    def is_frozen(self, name: str) -> bool:
        return bool(self.stages[name].frozen)

    def is_stale(self, name: str) -> bool:
        with self._locked_repo():
            return bool(self.stages[name].status())

    def require_dependencies(self, name: str) -> None:
        """Raise InputError if one does not exist, before outputs are removed for a run that must fail."""
        for dependency in self.stages[name].deps:
            if not dependency.exists:
                raise InputError(f"{dependency}: no such file or folder, which the stage depends on (STUDY.raw names raw data)")

    def can_run(self, name: str) -> bool:
        """False for data of `dvc add` (no command) and for frozen stages."""
        return bool(self.stages[name].cmd) and not self.is_frozen(name)

    def commands(self, name: str) -> list[list[str]]:
        """The stage's commands as DVC runs them: in the user's shell, without its start-up files."""
        from dvc.stage.run import _make_cmd, get_executable

        cmd = self.stages[name].cmd
        return [_make_cmd(get_executable(), line) for line in (cmd if isinstance(cmd, list) else cmd.splitlines())]

    def working_folder(self, name: str) -> str:
        return str(self.stages[name].wdir)

    def restore(self, name: str) -> bool:
        """Restore a stage's outputs from DVC's run cache; False if it has never been run with these inputs."""
        from dvc.stage.cache import RunCacheNotFoundError

        stage = self.stages[name]
        with self._locked_repo():
            try:
                self.repo.stage_cache.restore(stage)
            except RunCacheNotFoundError:
                return False
            self._save(stage)
        return True

    def remove_outputs(self, name: str) -> None:
        with self._locked_repo():
            self.stages[name].remove_outs()

    def record(self, name: str, stage_lock: ExitStack) -> None:
        """Record a stage's outputs. Its lock is released only once the repository is locked: otherwise another `dvc repro` could
        find the stage neither locked nor recorded, and run it again."""
        with self._locked_repo():
            stage_lock.close()
            self._save(self.stages[name])

    def _save(self, stage: Any) -> None:
        stage.save(run_cache=all(out.use_cache or out.is_metric or out.is_plot for out in stage.outs))  # DVC's own condition
        stage.commit()
        if not self._splice(stage):
            stage.dump(update_pipeline=False)

    def _splice(self, stage: Any) -> bool:
        """Replace the stage's own lines in dvc.lock, or add them; False if the file is not as DVC writes it. The bytes are DVC's,
        which parses and writes the whole file with its comments: 3 s each time for 85 stages."""
        from dvc.stage.serialize import to_lockfile
        from dvc.utils.serialize import dumps_yaml

        path = Path(self.repo.root_dir) / "dvc.lock"
        if stage.path_in_repo != "dvc.yaml" or not path.is_file():
            return False
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        head, *own = dumps_yaml({"stages": to_lockfile(stage)}).splitlines(keepends=True)
        top = [number for number, line in enumerate(lines) if not line.startswith(" ")]
        if not top or lines[top[-1]] != head:  # such as data sets after the stages
            return False
        start = lines.index(own[0]) if own[0] in lines else len(lines)
        end = next((n for n in range(start + 1, len(lines)) if not lines[n].startswith("    ")), len(lines))
        with atomic_file(path) as temporary:
            temporary.write_text("".join([*lines[:start], *own, *lines[end:]]), encoding="utf-8")
        self.repo.scm_context.track_file("dvc.lock")
        return True

    @contextmanager
    def _locked_repo(self) -> Iterator[None]:
        from dvc.repo import lock_repo

        with lock_repo(self.repo), self.repo.scm_context():
            yield

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold DVC's own locks on a stage's paths, so that it and a concurrent `dvc repro` stay out of each other's way."""
        from dvc.rwlock import rwlock

        stage, config = self.stages[name], self.repo.config["core"]
        deps, outs = ([item.fs_path for item in items] for items in (stage.deps, stage.outs))
        hardlink = config.get("hardlink_lock", False)
        with rwlock(self.repo.tmp_dir, self.repo.fs, f"quintet repro: {name}", deps, outs, hardlink):
            yield


def is_outdated(root: Path, stage: str) -> bool:
    """Whether `dvc status` lists a stage; False where DVC cannot tell (no repository, or another process is at work)."""
    from dvc.exceptions import DvcException

    try:
        return DvcPipeline(root).is_stale(stage)
    except (DvcException, InputError, KeyError):
        return False
