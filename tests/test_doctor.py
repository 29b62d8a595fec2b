"""`quintet doctor --cache` names each damaged object of DVC's cache and the outputs that contain it."""

import hashlib
import subprocess

import yaml

from quintet.doctor import examine_cache


def test_a_damaged_object_is_named_with_the_outputs_that_contain_it(tmp_path, monkeypatch):
    from dvc.repo import Repo

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHELL", "/bin/sh")
    subprocess.run(["git", "init", "-q", "."], check=True)
    repo = Repo.init(str(tmp_path))
    stages = {"one": {"cmd": "mkdir one && echo 1 > one/a && echo 2 > one/b", "outs": ["one"]}}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    repo.reproduce()
    line, damaged = examine_cache(tmp_path)
    assert "3 objects, 0 damaged" in line  # two files and their folder's listing
    assert damaged == []
    digest = hashlib.md5(b"2\n").hexdigest()
    path = tmp_path / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]
    path.chmod(0o644)
    path.write_bytes(b"3\n")
    line, damaged = examine_cache(tmp_path)
    assert "3 objects, 1 damaged" in line
    assert damaged == [f"{path} is damaged; run `rm -rf {path} {tmp_path / 'one'}`, then `dvc pull` or `dvc repro` to restore it"]
    listing = next(path.parent.parent.glob("*/*.dir"))
    listing.chmod(0o644)
    listing.write_text('[{"md4": 1}]')
    assert "2 damaged" in examine_cache(tmp_path)[0]
