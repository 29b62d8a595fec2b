"""`quintet repro` on small DVC projects of shell commands: order, failures, restored outputs, locks, Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml

from quintet.errors import InputError
from quintet.pipeline import Local, reproduce, summary
from quintet.pipeline.dvc import is_outdated
from quintet.pipeline.engines import STAGE_BYTES, free_jobs, run_job
from quintet.pipeline.preloaded import script_of

RUN = "sleep 0.1 && mkdir -p out && cp ready out/${item}"


def stage(cmd: str, deps: list[str], outs: list[str]) -> dict:
    return {"cmd": cmd, "deps": deps, "outs": outs}


STAGES = {
    "prepare": stage("cp raw ready && cat $PWD/raw", ["raw"], ["ready"]),
    "sweep": {"foreach": ["a", "b", "c"], "do": stage(RUN, ["ready"], ["out/${item}"])},
    "rank": stage("cat out/* > ranking", ["out"], ["ranking"]),
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A function that creates a git and DVC project with the given stages."""
    from dvc.repo import Repo

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHELL", "/bin/sh")
    subprocess.run(["git", "init", "-q", "."], check=True)
    Repo.init(str(tmp_path))

    def make(stages: dict) -> Path:
        (tmp_path / "raw").write_text("1\n")
        (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
        return tmp_path

    return make


def run(root: Path, *targets: str, jobs: int = 2):
    return reproduce(root, Local(jobs), targets, jobs=jobs, threads=1, log=lambda _: None)


def dvc_status(root: Path) -> dict:
    from dvc.repo import Repo

    return Repo(str(root)).status()


def test_stale_stages_run_in_order_and_are_up_to_date_for_dvc(project):
    root = project(STAGES)
    outcome = run(root)
    assert outcome.ran[0] == "prepare"
    assert outcome.ran[-1] == "rank"
    assert sorted(outcome.ran[1:-1]) == ["sweep@a", "sweep@b", "sweep@c"]
    assert (root / "ranking").read_text() == "1\n1\n1\n"
    assert dvc_status(root) == {}
    again = run(root)
    assert again.ran == again.restored == []
    assert len(again.unchanged) == 5
    assert summary(again) == "0 run, 0 restored from DVC's cache, 5 up to date"


def test_the_time_left_follows_from_what_stages_usually_take(project):
    prepare, rank = (STAGES[name] | {"meta": {"seconds": seconds}} for name, seconds in (("prepare", 1), ("rank", 1_000_000)))
    root, lines = project({"prepare": prepare, "rank": rank | {"cmd": "cat ready > ranking", "deps": ["ready"]}}), list[str]()
    started = time.monotonic()
    reproduce(root, Local(2), jobs=2, threads=1, log=lines.append)
    assert any(line.strip().startswith("rank: done") and "left" not in line for line in lines)
    minutes = int(re.search(r"\(1 of 2 done, 0 running, 1 left, at most about (\d+) min\)", "\n".join(lines))[1])
    assert 100 < minutes < (time.monotonic() - started) * 1_000_000 / 60


def test_targets_run_with_their_dependencies_alone(project):
    root = project(STAGES)
    assert run(root, "sweep").ran[0] == "prepare"
    assert not (root / "ranking").exists()
    with pytest.raises(InputError, match=r"dvc\.yaml has no such stage"):
        run(root, "swee")


def test_a_stage_is_not_run_if_its_dependencies_reproduce_the_same_files(project):
    stages = STAGES | {"prepare": stage("sort -u raw > ready", ["raw"], ["ready"])}
    root = project(stages)
    run(root)
    (root / "raw").write_text("1\n1\n")
    outcome = run(root)
    assert outcome.ran == ["prepare"]
    assert len(outcome.unchanged) == 4


def test_stages_in_the_run_cache_are_restored_not_run(project):
    root = project(STAGES)
    run(root)
    (root / "raw").write_text("2\n")
    run(root)
    (root / "raw").write_text("1\n")
    outcome = run(root)
    assert outcome.ran == []
    assert len(outcome.restored) == 5
    assert (root / "ranking").read_text() == "1\n1\n1\n"


def test_a_failure_affects_dependent_stages_alone_and_is_shown_with_its_log(project):
    broken = {"foreach": ["a", "b", "c"], "do": stage(f"echo trying; test ${{item}} != b && {RUN}", ["ready"], ["out/${item}"])}
    root = project(STAGES | {"sweep": broken})
    outcome = run(root)
    assert sorted(outcome.ran) == ["prepare", "sweep@a", "sweep@c"]
    assert list(outcome.failed) == ["sweep@b"]
    assert outcome.skipped == {"rank": "sweep@b"}
    text = summary(outcome)
    assert "rank: not run, it depends on sweep@b, which failed" in text
    assert "sweep@b FAILED: exit status 1; the end of logs/repro/sweep@b.log:\n    trying" in text
    project(STAGES)  # repaired
    assert "sweep@b" in run(root).ran
    assert dvc_status(root) == {}


def test_a_stage_without_its_output_fails(project):
    root = project({"prepare": stage("true", ["raw"], ["ready"])})
    assert "ready" in run(root).failed["prepare"]


def test_a_folder_without_a_project_is_refused(tmp_path):
    with pytest.raises(InputError, match="runs in a clone of the project"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("dvc.lock", "git checkout --theirs dvc.lock"), ("dvc.yaml", "choose one"), ("params.yaml", "choose one")],
)
def test_conflict_markers_of_a_merge_are_named(project, name, remedy):
    root = project(STAGES)
    path = root / name
    text = path.read_text() if path.is_file() else "a: 1\n"
    path.write_text(f"<<<<<<< HEAD\n{text}=======\n{text}>>>>>>> other\n")
    with pytest.raises(InputError, match=f"{name} has conflict markers; .*{remedy}"):
        run(root)


def test_ctrl_c_kills_running_stages_and_keeps_finished_ones(project):
    slow = {"foreach": ["a", "b", "c"], "do": stage(f"test ${{item}} = a || sleep 300; {RUN}", ["ready"], ["out/${item}"])}
    root = project(STAGES | {"sweep": slow})
    code = (  # a background job of a shell ignores Ctrl-C, and so would its children
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path; from quintet.pipeline import Local, reproduce\n"
        "reproduce(Path('.'), Local(2), jobs=2, threads=1, log=lambda text: print(text, flush=True))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout
    for line in process.stdout:
        if "sweep@a: done" in line:
            process.send_signal(signal.SIGINT)
            break
    process.wait(timeout=60)
    assert not (root / "out" / "b").exists()
    stages = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    assert set(stages) == {"prepare", "sweep@a"}


def test_the_lock_file_is_as_dvc_writes_it(project):
    """Also with folded commands, names that YAML quotes, and stages that are replaced or added."""
    from dvc.repo import Repo

    long = "cp raw 'x 1' && " + " && ".join(f"echo a{'long' * number} > /dev/null" for number in range(12))
    stages = {"2024": stage(long, ["raw"], ["x 1"]), "yes": stage("cp 'x 1' y; : \"quoted: #text\"", ["x 1"], ["y"])}
    root = project(stages | STAGES)
    run(root, "prepare", "yes")
    run(root)
    (root / "raw").write_text("2\n")
    outcome = run(root)
    assert set(outcome.ran) == {"2024", "yes", "prepare", "sweep@a", "sweep@b", "sweep@c", "rank"}
    written = (root / "dvc.lock").read_bytes()
    assert list(yaml.safe_load(written)["stages"])[-1] == "rank"
    for recorded in Repo(str(root)).index.stages:
        recorded.dump(update_pipeline=False)
    assert (root / "dvc.lock").read_bytes() == written
    assert dvc_status(root) == {}


def test_a_lock_file_of_another_shape_is_left_to_dvc(project):
    root, more = project(STAGES), "datasets: []\n"
    run(root)
    text = (root / "dvc.lock").read_text()
    (root / "dvc.lock").write_text(text + more)
    (root / "raw").write_text("2\n")
    assert "prepare" in run(root).ran
    assert more in (root / "dvc.lock").read_text()
    assert dvc_status(root) == {}


SLOW = "import os, time; from pathlib import Path; Path('pid').write_text(str(os.getpid())); time.sleep(60)"


@pytest.mark.parametrize("command", ["echo $$ > pid; sleep 60", "python stages/slow.py"])
def test_commands_are_killed_with_the_process_that_started_them(project, command):
    root = project({"prepare": stage(command, ["raw"], ["ready"])})
    (root / "stages").mkdir()
    (root / "stages" / "slow.py").write_text(SLOW)
    code = (
        "from pathlib import Path; from quintet.pipeline import Local, reproduce\n"
        "reproduce(Path('.'), Local(1), jobs=1, threads=1)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not ((root / "pid").exists() and (root / "pid").read_text()):
        time.sleep(0.1)
    process.kill()
    process.wait()
    pid = int((root / "pid").read_text())
    for _ in range(50):
        if not _alive(pid):
            break
        time.sleep(0.1)
    assert not _alive(pid)


SCRIPT = """
import json, os, sys
sys.stderr.write("a warning" + chr(10))
print("the output", sys.stdin.read(), flush=True)
place = [__name__, sys.argv, os.getcwd(), sys.path[0], os.environ["DVC_STAGE"]]
with open(sys.argv[2], "w") as file:
    json.dump([place, "torch" in sys.modules], file)
sys.exit(sys.argv[3] if len(sys.argv) > 3 else None)
"""


def test_scripts_run_as_by_dvc_in_processes_that_have_their_packages(project):
    """One fork for each script; the interpreter's state is that of a fresh one but for the packages."""
    out, bad = "python stages/write.py --out ready", "python stages/write.py --out bad 'no such file'"
    root = project({"prepare": stage(out, ["raw"], ["ready"]), "fails": stage(bad, ["raw"], ["bad"])})
    (root / "stages").mkdir()
    (root / "stages" / "write.py").write_text(SCRIPT)
    outcome = run(root, jobs=1)
    assert outcome.ran == ["prepare"]
    assert "exit status 1" in outcome.failed["fails"]
    assert outcome.failed["fails"].endswith("no such file")
    log = (root / "logs" / "repro" / "prepare.log").read_text()
    assert sorted(log.split()) == sorted(["a", "warning", "the", "output"])
    place, loaded = json.loads((root / "ready").read_text())
    assert loaded
    (root / "ready").unlink()
    subprocess.run(out, shell=True, check=True, env=os.environ | {"DVC_STAGE": "prepare"}, cwd=root)
    assert json.loads((root / "ready").read_text()) == [place, False]


def test_a_lost_process_fails_its_stage_alone(project):
    kill = "import os, signal; os.kill(os.getppid(), signal.SIGKILL); __import__('time').sleep(60)"
    root = project(
        {"a": stage("python stages/kill.py", ["raw"], ["x"]), "b": stage("python stages/write.py x ready", ["raw"], ["ready"])}
    )
    (root / "stages").mkdir()
    (root / "stages" / "write.py").write_text(SCRIPT)
    (root / "stages" / "kill.py").write_text(kill)
    outcome = run(root, jobs=1)
    assert outcome.ran == ["b"]
    assert "exit status -9" in outcome.failed["a"]


@pytest.mark.parametrize(
    "command",
    [
        "",
        "python",
        "python -m stages.write",
        "python stages/write.py > x",
        "sh stages/write.py",
        "python other/write.py",
        "python stages/write.py $HOME",
        "python stages/write.py a b*",
        "python stages/none.py",
        "X=1 python stages/write.py",
    ],
)
def test_other_commands_go_to_the_shell(tmp_path, command):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "write.py").write_text(SCRIPT)
    assert script_of(command, str(tmp_path)) is None
    assert script_of("python stages/write.py 'a b' --c", str(tmp_path)) == ["stages/write.py", "a b", "--c"]


def test_a_stage_that_another_dvc_is_running_is_left_alone(project):
    root = project(STAGES | {"prepare": stage("sleep 4; cp raw ready", ["raw"], ["ready"])})
    other = subprocess.Popen([sys.executable, "-m", "dvc", "repro", "prepare"], stdout=subprocess.PIPE, text=True)
    assert other.stdout
    while not (root / ".dvc/tmp/rwlock").exists() or "ready" not in (root / ".dvc/tmp/rwlock").read_text():
        time.sleep(0.05)
    outcome = run(root, "prepare")
    assert "is busy" in outcome.failed["prepare"]
    assert str(other.pid) in outcome.failed["prepare"]
    assert other.wait() == 0
    assert (root / "ready").read_text() == "1\n"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def test_the_users_own_data_is_recorded_and_never_removed(project):
    """A file of `dvc add` that changed: the new content is in no cache."""
    from dvc.repo import Repo

    root = project(STAGES)
    Repo(str(root)).add("raw")
    run(root)
    (root / "raw").write_text("2\n")
    outcome = run(root)
    assert outcome.failed == {}
    assert (root / "raw").read_text() == "2\n"
    assert (root / "ranking").read_text() == "2\n2\n2\n"
    assert dvc_status(root) == {}


def test_commands_run_as_dvc_runs_them(project, monkeypatch):
    """In order until one fails, each in the user's shell and in the stage's working folder."""
    monkeypatch.setenv("SHELL", "/bin/bash")
    first = {"wdir": "sub", "cmd": ["cd /", "[[ 1 == 1 ]] && pwd > here"], "outs": ["here"]}
    second = {"cmd": "cp raw one\nfalse\ncp raw two", "outs": ["one", "two"]}
    root = project({"first": first, "second": second})
    (root / "sub").mkdir()
    outcome = run(root)
    assert (root / "sub" / "here").read_text() == f"{root / 'sub'}\n"
    assert outcome.ran == ["first"]
    assert "exit status 1" in outcome.failed["second"]
    assert (root / "one").exists()
    assert not (root / "two").exists()


def test_uncached_outputs_are_not_restored(project):
    uncached = {"cmd": "cp raw ready", "deps": ["raw"], "outs": [{"ready": {"cache": False}}]}
    root = project({"prepare": uncached})
    for text in ("1\n", "2\n", "1\n"):
        (root / "raw").write_text(text)
        assert run(root).ran == ["prepare"]
        assert (root / "ready").read_text() == text


def test_a_frozen_stage_is_not_run_and_neither_are_its_dependencies(project):
    root = project(STAGES)
    run(root)
    project(STAGES | {"rank": STAGES["rank"] | {"frozen": True}})
    (root / "raw").write_text("2\n")
    assert run(root, "rank").unchanged == ["rank"]
    assert (root / "ready").read_text() == "1\n"
    (root / "ranking").unlink()
    assert "ranking" in run(root, "rank").failed["rank"]


def test_a_frozen_stage_is_checked_after_its_dependencies(project):
    """Its inputs are locked while they are being written."""
    root = project(STAGES)
    run(root)
    frozen = STAGES["sweep"]["do"] | {"frozen": True}
    slow = stage("sleep 1; cp raw ready", ["raw"], ["ready"])
    project(STAGES | {"prepare": slow, "sweep": STAGES["sweep"] | {"do": frozen}})
    (root / "raw").write_text("2\n")
    outcome = run(root, jobs=4)
    assert outcome.failed == {}
    assert outcome.ran == ["prepare"]
    assert sorted(outcome.unchanged) == ["rank", "sweep@a", "sweep@b", "sweep@c"]


def test_a_missing_input_fails_its_own_stage_alone(project):
    root = project(STAGES | {"lost": stage("true", ["typo"], ["never"])})
    outcome = run(root)
    assert list(outcome.failed) == ["lost"]
    assert "typo" in outcome.failed["lost"]
    assert (root / "ranking").read_text() == "1\n1\n1\n"


def test_a_missing_input_costs_no_outputs(project):
    root = project(STAGES)
    run(root)
    (root / "raw").unlink()
    outcome = run(root)
    assert "raw: no such file or folder, which the stage depends on" in outcome.failed["prepare"]
    assert (root / "ready").read_text() == "1\n"


def test_whether_a_stage_is_outdated(project):
    root = project(STAGES)
    run(root)
    assert not is_outdated(root, "rank")
    (root / "out" / "b").write_text("2\n")
    assert is_outdated(root, "rank")
    assert not is_outdated(root, "no such stage")
    assert not is_outdated(root.parent, "rank")


class InterruptedEngine:
    """Its first stage has ended, but was not collected yet, when Ctrl-C comes."""

    description = "a test"

    def __init__(self) -> None:
        self.jobs = 0

    def submit(self, job):
        self.jobs += 1
        if self.jobs > 1:
            raise KeyboardInterrupt
        future = Future()
        future.set_result(run_job(job))
        return future

    def stop(self) -> None:
        pass


def test_a_stage_that_ended_before_ctrl_c_is_recorded(project):
    root = project({name: stage(f"cp raw {name}", ["raw"], [name]) for name in ("one", "two")})
    with pytest.raises(KeyboardInterrupt):
        reproduce(root, InterruptedEngine(), jobs=2, threads=1, log=lambda _: None)
    assert set(dvc_status(root)) == {"two"}


def test_ctrl_c_while_a_stage_is_being_recorded(project, monkeypatch):
    from dvc.stage import Stage

    root, save, calls = project({"one": stage("cp raw one", ["raw"], ["one"])}), Stage.save, []

    def interrupted(self, **options):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        save(self, **options)

    monkeypatch.setattr(Stage, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(root)
    assert dvc_status(root) == {}


def test_a_finished_stage_stays_locked_until_dvc_is_locked(project, monkeypatch):
    """Otherwise a concurrent `dvc repro` could find it unrecorded, remove its outputs and run it again."""
    from dvc.repo.scm_context import SCMContext

    root, enter, stage_locked = project({"one": stage("cp raw one", ["raw"], ["one"])}), SCMContext.__call__, []

    def watched(self, *args, **options):  # entered each time that DVC has just been locked
        locks = (root / ".dvc/tmp/rwlock").read_text() if (root / "one").exists() else ""
        stage_locked.append("quintet repro: one" in locks)
        return enter(self, *args, **options)

    monkeypatch.setattr(SCMContext, "__call__", watched)
    run(root)
    assert stage_locked == [False, False, False, True]  # stale? remove, restore, record
    assert dvc_status(root) == {}


@pytest.mark.parametrize(
    ("cores", "busy_percent", "memory", "gpu", "jobs"),
    [
        (2, 0, 10, False, 2),
        (2, 50, 10, False, 2),  # a busy process beside it
        (2, 100, 10, False, 1),
        (16, 50, 100, False, 9),
        (16, 0, 3, False, 3),
        (16, 0, 0, False, 1),
        (16, 0, 100, True, 1),
    ],
)
def test_jobs_by_free_cores_and_memory(monkeypatch, cores, busy_percent, memory, gpu, jobs):
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: list(range(cores)), raising=False)
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: busy_percent)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=memory * STAGE_BYTES))
    monkeypatch.setattr("quintet.pipeline.engines.shutil.which", lambda name: "/bin/nvidia-smi" if gpu else None)
    assert free_jobs() == jobs
