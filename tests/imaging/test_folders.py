"""One walker for every study: links, hidden files, what archives and systems leave, and what is passed over."""

import errno
import os
from pathlib import Path

import pytest

from quintet.errors import InputError
from quintet.imaging.folders import entries, files_below, print_passed_over, with_suffix


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


def test_links_are_followed_once_and_hidden_names_are_left_out(tmp_path):
    for name in ("a.png", "b/ü.PNG", "b/._ü.PNG", "__MACOSX/a.png", ".ipynb_checkpoints/a.png", "b/Thumbs.db", "b/DICOMDIR", "z"):
        put(tmp_path / "in" / name)
    put(tmp_path / "elsewhere" / "c.png")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "b" / "loop").symlink_to(tmp_path / "in")
    found = [path.relative_to(tmp_path / "in").as_posix() for path in files_below(tmp_path / "in")]
    assert found == ["a.png", "b/ü.PNG", "link/c.png", "z"]


def test_a_link_to_nowhere_is_found_so_that_reading_names_it(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "nowhere")
    assert files_below(tmp_path) == [tmp_path / "a.png"]


def test_names_that_are_not_utf8_are_shown_and_refused_together(tmp_path):
    for name in (b"/M\xfcller/a.png", b"/Sch\xe4fer/a.png"):
        put(Path(os.fsdecode(os.fsencode(tmp_path) + name)))
    for walk in (files_below, entries):
        with pytest.raises(InputError, match=r"2 problem(?s:.*)M\\xfcller.*this name is not UTF-8(?s:.*)Sch\\xe4fer"):
            walk(tmp_path)


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tmp_path, monkeypatch):
    put(tmp_path / "b" / "a.png")
    scandir = os.scandir

    def failing(folder):
        if Path(folder).name == "b":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(InputError, match=r"b: this folder cannot be listed \(Input/output error\)"):
        files_below(tmp_path)
    with pytest.raises(InputError, match="nowhere: no such folder"):
        entries(tmp_path / "nowhere")


def test_what_is_passed_over_is_counted_by_suffix(tmp_path, capsys):
    for name in ("1.tif", "2.TIF", "IM01", "scan.nii.gz", "a.png"):
        put(tmp_path / name)
    chosen, others = with_suffix(files_below(tmp_path), (".png", ".jpg"))
    assert [path.name for path in chosen] == ["a.png"]
    print_passed_over(others, tmp_path, ".png")
    printed = capsys.readouterr().out
    assert "2 .tif, 1 without suffix, 1 .nii.gz (such as 1.tif); expected .png" in printed
    print_passed_over([], tmp_path, ".png")
    assert not capsys.readouterr().out
