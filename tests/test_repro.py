"""`quintet repro` on small DVC projects of shell commands: order, what a failure costs, restoring, locks, Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from quintet.engines import Local, run
from quintet.errors import InputError
from quintet.repro import Books, repro, summary

CELL = "sleep 0.1 && mkdir -p out && cp ready out/${item}"


def stage(cmd: str, deps: list[str], outs: list[str]) -> dict:
    return {"cmd": cmd, "deps": deps, "outs": outs}


STAGES = {
    "prepare": stage("cp raw ready && cat $PWD/raw", ["raw"], ["ready"]),
    "cell": {"foreach": ["a", "b", "c"], "do": stage(CELL, ["ready"], ["out/${item}"])},
    "rank": stage("cat out/* > ranking", ["out"], ["ranking"]),
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A function that makes a git and DVC project of some stages."""
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


def bring(root: Path, *targets: str, jobs: int = 2):
    return repro(root, Local(jobs), targets, jobs=jobs, threads=1, say=lambda _: None)


def dvc_status(root: Path) -> dict:
    from dvc.repo import Repo

    return Repo(str(root)).status()


def test_stale_stages_run_in_order_and_dvc_finds_nothing_left(project):
    root = project(STAGES)
    outcome = bring(root)
    assert outcome.ran[0] == "prepare"
    assert outcome.ran[-1] == "rank"
    assert sorted(outcome.ran[1:-1]) == ["cell@a", "cell@b", "cell@c"]
    assert (root / "ranking").read_text() == "1\n1\n1\n"
    assert dvc_status(root) == {}
    again = bring(root)
    assert again.ran == again.restored == []
    assert len(again.unchanged) == 5
    assert summary(again) == "0 run, 0 restored from DVC's cache, 5 up to date"


def test_targets_bring_what_they_wait_for_and_nothing_else(project):
    root = project(STAGES)
    assert bring(root, "cell").ran[0] == "prepare"
    assert not (root / "ranking").exists()
    with pytest.raises(InputError, match=r"dvc\.yaml has no such stage"):
        bring(root, "cel")


def test_a_stage_whose_inputs_come_out_unchanged_is_not_run(project):
    stages = STAGES | {"prepare": stage("sort -u raw > ready", ["raw"], ["ready"])}
    root = project(stages)
    bring(root)
    (root / "raw").write_text("1\n1\n")
    outcome = bring(root)
    assert outcome.ran == ["prepare"]
    assert len(outcome.unchanged) == 4


def test_what_dvc_has_cached_is_restored_not_run(project):
    root = project(STAGES)
    bring(root)
    (root / "raw").write_text("2\n")
    bring(root)
    (root / "raw").write_text("1\n")
    outcome = bring(root)
    assert outcome.ran == []
    assert len(outcome.restored) == 5
    assert (root / "ranking").read_text() == "1\n1\n1\n"


def test_a_failure_costs_only_what_waits_for_it_and_is_shown_with_its_log(project):
    broken = {"foreach": ["a", "b", "c"], "do": stage(f"echo trying; test ${{item}} != b && {CELL}", ["ready"], ["out/${item}"])}
    root = project(STAGES | {"cell": broken})
    outcome = bring(root)
    assert sorted(outcome.ran) == ["cell@a", "cell@c", "prepare"]
    assert list(outcome.failed) == ["cell@b"]
    assert outcome.skipped == {"rank": "cell@b"}
    text = summary(outcome)
    assert "rank: not run, it waits for cell@b" in text
    assert "cell@b FAILED: exit status 1; logs/repro/cell@b.log ends with\n    trying" in text
    project(STAGES)  # mended: what had ended is not run again, unless its command changed
    assert "cell@b" in bring(root).ran
    assert dvc_status(root) == {}


def test_a_stage_without_its_output_fails(project):
    root = project({"prepare": stage("true", ["raw"], ["ready"])})
    assert "ready" in bring(root).failed["prepare"]


def test_not_a_project(tmp_path):
    with pytest.raises(InputError, match="runs in a clone of the project"):
        bring(tmp_path)


def test_stopped_by_ctrl_c_the_next_run_goes_on(project):
    slow = {"foreach": ["a", "b", "c"], "do": stage(f"test ${{item}} = a || sleep 30; {CELL}", ["ready"], ["out/${item}"])}
    root = project(STAGES | {"cell": slow})
    code = (  # tests that run in the background of a shell inherit that Ctrl-C is ignored
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path; from quintet.engines import Local; from quintet.repro import repro\n"
        "repro(Path('.'), Local(2), (), jobs=2, threads=1, say=lambda t: print(t, flush=True))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout
    for line in process.stdout:
        if "cell@a: done" in line:
            process.send_signal(signal.SIGINT)
            break
    began = time.monotonic()
    process.wait()
    assert time.monotonic() - began < 20
    assert not (root / "out" / "b").exists()
    stages = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    assert set(stages) == {"prepare", "cell@a"}


def test_killed_with_its_engine_a_command_does_not_go_on(project):
    root = project({"prepare": stage("echo $$ > pid; sleep 60", ["raw"], ["ready"])})
    code = (
        "from pathlib import Path; from quintet.engines import Local; from quintet.repro import repro\n"
        "repro(Path('.'), Local(1), (), jobs=1, threads=1)"
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


def test_a_stage_that_another_process_of_dvc_runs_is_left_alone(project):
    root = project(STAGES | {"prepare": stage("sleep 6; cp raw ready", ["raw"], ["ready"])})
    other = subprocess.Popen([sys.executable, "-m", "dvc", "repro", "prepare"], stdout=subprocess.PIPE, text=True)
    assert other.stdout
    while not (root / ".dvc/tmp/rwlock").exists() or "ready" not in (root / ".dvc/tmp/rwlock").read_text():
        time.sleep(0.05)
    outcome = bring(root, "prepare")
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


def test_data_of_the_user_is_recorded_and_never_removed(project):
    """A folder of `dvc add` that grew: what is new stands in no cache."""
    from dvc.repo import Repo

    root = project(STAGES)
    Repo(str(root)).add("raw")
    bring(root)
    (root / "raw").write_text("2\n")
    outcome = bring(root)
    assert outcome.failed == {}
    assert (root / "raw").read_text() == "2\n"
    assert (root / "ranking").read_text() == "2\n2\n2\n"
    assert dvc_status(root) == {}


def test_commands_run_as_dvc_runs_them(project, monkeypatch):
    """Several, each in the user's shell, until one fails; in the stage's folder."""
    monkeypatch.setenv("SHELL", "/bin/bash")
    first = {"wdir": "sub", "cmd": ["cd /", "[[ 1 == 1 ]] && pwd > here"], "outs": ["here"]}
    second = {"cmd": "cp raw one\nfalse\ncp raw two", "outs": ["one", "two"]}
    root = project({"first": first, "second": second})
    (root / "sub").mkdir()
    outcome = bring(root)
    assert (root / "sub" / "here").read_text() == f"{root / 'sub'}\n"
    assert outcome.ran == ["first"]
    assert "exit status 1" in outcome.failed["second"]
    assert (root / "one").exists()
    assert not (root / "two").exists()


def test_outputs_outside_the_cache_are_not_taken_for_restorable(project):
    uncached = {"cmd": "cp raw ready", "deps": ["raw"], "outs": [{"ready": {"cache": False}}]}
    root = project({"prepare": uncached})
    for text in ("1\n", "2\n", "1\n"):
        (root / "raw").write_text(text)
        assert bring(root).ran == ["prepare"]
        assert (root / "ready").read_text() == text


def test_a_frozen_stage_is_not_run_and_waits_for_nothing(project):
    root = project(STAGES)
    bring(root)
    project(STAGES | {"rank": STAGES["rank"] | {"frozen": True}})
    (root / "raw").write_text("2\n")
    assert bring(root, "rank").unchanged == ["rank"]
    assert (root / "ready").read_text() == "1\n"
    (root / "ranking").unlink()
    assert "ranking" in bring(root, "rank").failed["rank"]


def test_a_frozen_stage_is_looked_at_after_those_before_it(project):
    """Its inputs are locked while they are made."""
    root = project(STAGES)
    bring(root)
    cell = STAGES["cell"]["do"] | {"frozen": True}
    slow = stage("sleep 1; cp raw ready", ["raw"], ["ready"])
    project(STAGES | {"prepare": slow, "cell": STAGES["cell"] | {"do": cell}})
    (root / "raw").write_text("2\n")
    outcome = bring(root, jobs=4)
    assert outcome.failed == {}
    assert outcome.ran == ["prepare"]
    assert sorted(outcome.unchanged) == ["cell@a", "cell@b", "cell@c", "rank"]


def test_an_input_that_is_not_there_costs_no_other_stage(project):
    root = project(STAGES | {"lost": stage("true", ["typo"], ["never"])})
    outcome = bring(root)
    assert list(outcome.failed) == ["lost"]
    assert "typo" in outcome.failed["lost"]
    assert (root / "ranking").read_text() == "1\n1\n1\n"


class Interrupted:
    """An engine whose first stage has ended when Ctrl-C comes, before anybody looked."""

    where = "here"

    def __init__(self) -> None:
        self.jobs = 0

    def submit(self, job):
        self.jobs += 1
        if self.jobs > 1:
            raise KeyboardInterrupt
        future = Future()
        future.set_result(run(job))
        return future

    def stop(self) -> None:
        pass


def test_what_ended_before_ctrl_c_is_recorded(project):
    root = project({name: stage(f"cp raw {name}", ["raw"], [name]) for name in ("one", "two")})
    with pytest.raises(KeyboardInterrupt):
        repro(root, Interrupted(), jobs=2, threads=1, say=lambda _: None)
    assert set(dvc_status(root)) == {"two"}


def test_ctrl_c_while_a_stage_is_recorded(project, monkeypatch):
    root, record, came = project({"one": stage("cp raw one", ["raw"], ["one"])}), Books._record, []

    def interrupted(self, stage):
        came.append(1)
        if len(came) == 1:
            raise KeyboardInterrupt
        record(self, stage)

    monkeypatch.setattr(Books, "_record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bring(root)
    assert dvc_status(root) == {}


def test_what_ended_is_claimed_until_dvc_is_locked(project, monkeypatch):
    """Else a `dvc repro` beside could find it unrecorded, remove it and run it again."""
    root, claims, enter = project({"one": stage("cp raw one", ["raw"], ["one"])}), [], Books._open

    @contextmanager
    def watched(self):
        with enter(self):
            claims.append("quintet repro: one" in (root / ".dvc/tmp/rwlock").read_text() if (root / "one").exists() else None)
            yield

    monkeypatch.setattr(Books, "_open", watched)
    bring(root)
    assert claims == [None, None, None, True]  # stale? remove, restore, record
    assert dvc_status(root) == {}
