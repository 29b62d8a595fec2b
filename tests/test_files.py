import os
import subprocess
import sys
from pathlib import Path

import pytest

from quintet.errors import InputError, exit_on_user_error
from quintet.figures import new_figure
from quintet.files import atomic_file, atomic_folder, md5, reject_overlap
from quintet.registry import Registry


def test_a_folder_is_replaced_atomically(tmp_path):
    target = tmp_path / "out"
    with atomic_folder(target) as folder:
        (folder / "old").write_text("1")
    with pytest.raises(RuntimeError), atomic_folder(target) as folder:
        (folder / "half").write_text("2")
        raise RuntimeError
    assert [p.name for p in target.iterdir()] == ["old"]
    with atomic_folder(target) as folder:
        (folder / "new").write_text("3")
    assert [p.name for p in target.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_link_to_a_folder_gets_the_results_and_what_cannot_be_replaced_is_said_before(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "new").write_text("3")
    assert (tmp_path / "out").is_symlink()
    assert [p.name for p in (tmp_path / "disk").iterdir()] == ["new"]
    with pytest.raises(InputError, match="mounted disk"), atomic_folder(Path("/proc")):
        pass


def test_results_stay_where_the_target_cannot_be_replaced(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(InputError, match="Operation not permitted") as caught, atomic_folder(tmp_path / "out") as folder:
        (folder / "new").write_text("3")
    assert (folder / "new").read_text() == "3"
    assert str(folder) in str(caught.value)


def test_leftovers_of_killed_processes_are_removed_and_those_of_running_ones_are_kept(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    (tmp_path / f".out.{child.pid}.part").mkdir()
    (tmp_path / f".out.{os.getppid()}.part").mkdir()
    (tmp_path / f".table.{child.pid}.part.csv").touch()
    with atomic_folder(tmp_path / "out"), atomic_file(tmp_path / "table.csv") as file:
        file.touch()
    assert {p.name for p in tmp_path.iterdir()} == {"out", "table.csv", f".out.{os.getppid()}.part"}


def test_a_file_is_replaced_atomically(tmp_path):
    target = tmp_path / "deep" / "table.csv"
    with atomic_file(target) as temporary:
        temporary.write_text("one")
        assert temporary.suffix == ".csv"
        assert not target.exists()
    with pytest.raises(RuntimeError), atomic_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "one"
    assert len(list(target.parent.iterdir())) == 1


def test_md5_of_a_folder_depends_on_names_and_contents(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("1")
    assert md5(tmp_path / "a") == md5(tmp_path / "b")
    (tmp_path / "b" / "x").rename(tmp_path / "b" / "y")
    assert md5(tmp_path / "a") != md5(tmp_path / "b")


def test_registry_lists_its_names_and_refuses_duplicates():
    registry = Registry("loss")

    @registry.register("dice")
    def dice_loss() -> None: ...

    assert registry["dice"] is dice_loss
    with pytest.raises(InputError, match=r"unknown loss 'dicee'; choose from: dice"):
        registry["dicee"]
    with pytest.raises(ValueError, match="twice"):
        registry.register("dice")(dice_loss)


def test_the_current_folder_and_targets_of_the_wrong_kind_are_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path / "work")
    for target in (tmp_path, tmp_path / "work", tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError), atomic_folder(target):
            raise AssertionError("never reached")
    with pytest.raises(InputError), atomic_file(tmp_path / "work"):
        raise AssertionError("never reached")
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(InputError, match="separate folders"):
        reject_overlap(tmp_path / "a" / "b", tmp_path / "a")
    reject_overlap(tmp_path / "a", tmp_path / "ab")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_a_figure_on_a_full_disk_is_one_line(suffix, capsys):
    figure, axes = new_figure(2, 2)
    axes.set_title("a title, so that the PDF has fonts")
    with pytest.raises(SystemExit), exit_on_user_error("figure"):
        figure.savefig("/dev/full", format=suffix)
    assert capsys.readouterr().err.endswith("the disk is full; make room, then run the same command again\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_checkpoint_on_a_full_disk_is_one_line(capsys):
    import torch

    with pytest.raises(SystemExit), exit_on_user_error("checkpoint"):
        torch.save({"weight": torch.zeros(100_000)}, "/dev/full")
    assert capsys.readouterr().err.endswith("the disk is full; make room, then run the same command again\n")
