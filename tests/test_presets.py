"""`quintet preset`: values change, comments stay, and `demo` restores the committed params.yaml."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from quintet.errors import InputError
from quintet.params import StudyName
from quintet.presets import apply_preset
from tests.conftest import with_changes

PRESET = """\
landmarks:
  losses: [wing, symmetry] # a comment of the preset
  rate_head: 0.00002
  sweep: {seeds: [0, 1, 2]}
perfusion:
  training: {epochs: 7, patch: [96, 96], loss_weights: {adaptive: [0.1, 0.2]}}
"""
CHANGES = [
    "landmarks.losses: wing -> wing, symmetry",
    "landmarks.rate_head: 0.002 -> 2e-05",
    "landmarks.sweep.seeds: 0 -> 0, 1, 2",
    "perfusion.training.epochs: 2 -> 7",
    "perfusion.training.patch: 72, 56 -> 96, 96",
    "perfusion.training.loss_weights.adaptive: 0.05, 0.15 -> 0.1, 0.2",
]


@pytest.fixture
def committed(checkout) -> Path:
    """A checkout whose params.yaml is committed."""
    (checkout / "presets" / "mine.yaml").write_text(PRESET)
    name = "-c user.name=tester -c user.email=tester@example.com"
    subprocess.run(f"git init -q . && git add -A && git {name} commit -qm start", shell=True, check=True, cwd=checkout)
    return checkout


def read(root: Path) -> tuple[str, dict]:
    text = (root / "params.yaml").read_text()
    return text, yaml.safe_load(text)


def comments(text: str) -> list[str]:
    return re.findall("#.*", text)


def test_a_preset_changes_values_and_keeps_comments(committed):
    text, values = read(committed)
    assert apply_preset(committed, "mine", None) == CHANGES
    changed, new = read(committed)
    assert comments(changed) == comments(text)
    assert "rate_head: 0.00002" in changed
    expected = {
        "landmarks.losses": ["wing", "symmetry"],
        "landmarks.rate_head": 2e-5,
        "landmarks.sweep.seeds": [0, 1, 2],
        "perfusion.training.epochs": 7,
        "perfusion.training.patch": [96, 96],
        "perfusion.training.loss_weights.adaptive": [0.1, 0.2],
    }
    assert new == with_changes(values, expected)
    assert apply_preset(committed, "mine", None) == []


def test_demo_restores_the_committed_file_byte_for_byte(committed):
    text, _ = read(committed)
    apply_preset(committed, "mine", None)
    path = committed / "params.yaml"
    path.write_text(path.read_text().replace("# Every value", "# My value"))
    assert apply_preset(committed, "demo", None) == [" -> ".join(_reversed(line)) for line in CHANGES]
    assert read(committed)[0] == text
    assert apply_preset(committed, "demo", None) == []


def _reversed(line: str) -> tuple[str, str]:
    key, old, new = re.fullmatch(r"(\S+): (.*) -> (.*)", line).groups()
    return f"{key}: {new}", old


def test_demo_restores_one_study_and_keeps_the_changes_to_others(committed):
    text, values = read(committed)
    apply_preset(committed, "mine", None)
    changes = apply_preset(committed, "demo", "landmarks")
    assert changes == [" -> ".join(_reversed(line)) for line in CHANGES if line.startswith("landmarks")]
    changed, new = read(committed)
    assert new["landmarks"] == values["landmarks"]
    assert new["perfusion"]["training"]["epochs"] == 7
    assert comments(changed) == comments(text)


def test_demo_removes_an_added_configuration(committed):
    _, values = read(committed)
    path = committed / "params.yaml"
    path.write_text(
        path.read_text().replace("    separate: {arch: separate, losses: []}", "    mine: {arch: shared, losses: []}")
    )
    changes = apply_preset(committed, "demo", "perfusion")
    assert len(changes) == 2
    assert changes[0].startswith("perfusion.configs.mine: ")
    assert changes[0].endswith(" -> removed")
    assert changes[1].startswith("perfusion.configs.separate: None -> ")
    assert read(committed)[1] == values


@pytest.mark.parametrize("name", ["paper", "best", "top3", "smoke"])
def test_shipped_presets_keep_comments_and_are_undone_by_demo(name, committed):
    text, values = read(committed)
    assert apply_preset(committed, name, None)
    assert comments(read(committed)[0]) == comments(text)
    for study in StudyName:
        apply_preset(committed, "demo", study.value)
    restored, restored_values = read(committed)
    assert comments(restored) == comments(text)
    assert all(restored_values[study.value] == values[study.value] for study in StudyName)
    apply_preset(committed, "demo", None)
    assert read(committed)[0] == text


@pytest.mark.parametrize("study", [None, "perfusion"])
def test_demo_without_a_commit_names_the_remedy(checkout, study):
    text, _ = read(checkout)
    with pytest.raises(InputError, match=r"the committed params\.yaml cannot be read .*needs git and a clone of the project"):
        apply_preset(checkout, "demo", study)
    assert read(checkout)[0] == text


def test_demo_without_git_names_the_remedy(committed, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"No such file or directory: 'git'.*needs git"):
        apply_preset(committed, "demo", None)


def test_demo_works_in_a_subfolder_of_a_repository(committed):
    folder = committed / "sub"
    folder.mkdir()
    (committed / "params.yaml").rename(folder / "params.yaml")
    (committed / "params.yaml").write_text("other: 1\n")
    name = "-c user.name=tester -c user.email=tester@example.com"
    subprocess.run(f"git add -A && git {name} commit -qm moved", shell=True, check=True, cwd=committed)
    assert apply_preset(folder, "demo", None) == []


def test_an_empty_mapping_replaces_and_a_study_without_values_is_named(committed):
    (committed / "presets" / "mine.yaml").write_text("perfusion:\n  sweep: {ensembles: {}}\n")
    assert apply_preset(committed, "mine", "perfusion") == ["perfusion.sweep.ensembles: {'ensemble': []} -> {}"]
    assert yaml.safe_load((committed / "params.yaml").read_text())["perfusion"]["sweep"]["ensembles"] == {}
    with pytest.raises(InputError, match=r"presets/mine\.yaml has no values of ct"):
        apply_preset(committed, "mine", "ct")


def test_an_invalid_result_is_not_written(committed):
    text, _ = read(committed)
    (committed / "presets" / "mine.yaml").write_text("perfusion: {training: {epochs: -1}}")
    with pytest.raises(InputError, match=r"perfusion\.training\.epochs"):
        apply_preset(committed, "mine", None)
    assert read(committed)[0] == text
