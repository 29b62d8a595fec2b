"""The cache of masks: hits start no segmenter, damage is found, a kill loses one image, processes do not interfere; a stand-in
for TotalSegmentator."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from quintet.errors import InputError, InputProblemsError
from quintet.fusion.data import segmentation
from quintet.fusion.data.segmentation import Segmenter, mask_of, segment, segmenter_for, stored_masks
from quintet.imaging.volumes import Grid, write_nifti
from tests.conftest import ROOT, with_changes
from tests.fusion.conftest import SMALL

THRESHOLD = Segmenter("threshold", "", False, "1", "")
# The options of TotalSegmentator 2.18 that we use, as its --help documents them.
DOCUMENTED = {"-i", "-o", "--ml", "--task", "--fast", "--version"}
STAND_IN = """#!{python}
import argparse, json, os, sys, time
import nibabel, numpy
parser = argparse.ArgumentParser()
parser.add_argument("-i", dest="input"); parser.add_argument("-o", dest="output")
parser.add_argument("-ml", "--ml", action="store_true"); parser.add_argument("-f", "--fast", action="store_true")
parser.add_argument("-ta", "--task", choices=["total", "total_mr", "brain_structures"], default="total")
parser.add_argument("--version", action="version", version=os.environ.get("STAND_IN_VERSION", "2.18.0"))
options = parser.parse_args()
with open({calls!r}, "a") as file:
    settings = json.load(open(os.environ["TOTALSEG_HOME_DIR"] + "/config.json"))
    file.write(json.dumps({{"args": sys.argv[1:], "stats": settings["send_usage_stats"]}}) + "\\n")
time.sleep(float(os.environ.get("STAND_IN_SECONDS", "0")))
if "broken" in options.input:
    sys.exit("no weights found")
image = nibabel.load(options.input)
data = numpy.asarray(image.dataobj)
nibabel.save(nibabel.Nifti1Image((data > data.mean()).astype("uint8") * 3, image.affine), options.output)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    segmentation.program_version.cache_clear()
    return tmp_path


@pytest.fixture
def raw(here):
    """Two patients with two images each."""
    for patient in ("a", "b"):
        (here / "raw" / patient).mkdir(parents=True)
        for k, name in enumerate(("mri_flair", "pet")):
            write_ball(here / "raw" / patient / f"{name}.nii.gz", radius=4 + k + 2 * (patient == "b"))
    return here / "raw"


def write_ball(path, *, radius, side=16):
    at = np.indices((side,) * 3) - side / 2
    write_nifti(path, ((at**2).sum(0) < radius**2).astype(np.float32) * 100 + 1, Grid((side,) * 3, np.diag([5.0, 5, 5, 1])))


@pytest.fixture
def stand_in(here, make_params):
    program, calls = here / "TotalSegmentator", here / "calls.txt"
    program.write_text(STAND_IN.format(python=sys.executable, calls=str(calls)))
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    params = make_params(
        {
            "fusion.segmentation.segmenter": "totalsegmentator",
            "fusion.segmentation.totalsegmentator": str(program),
            "fusion.data.modalities": ["mri_flair", "pet"],
        }
    ).fusion
    return params, lambda: [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []


def test_threshold_finds_the_largest_component(raw):
    mask, hit = mask_of(raw / "a" / "mri_flair.nii.gz", THRESHOLD)
    at = np.indices((16,) * 3) - 8
    assert not hit
    assert np.array_equal(mask, (at**2).sum(0) < 16)


def test_a_second_run_starts_no_segmenter_and_one_change_starts_one(raw, stand_in):
    params, calls = stand_in
    table, made = segment(raw, Path("masks"), params)
    assert made == 4
    assert len(calls()) == 2  # PET has no task: the threshold's mask
    assert set(table["segmenter"]) == {"totalsegmentator", "threshold"}
    again, made = segment(raw, Path("masks"), params)
    assert made == 0
    assert len(calls()) == 2
    assert again.equals(table)
    write_ball(raw / "a" / "mri_flair.nii.gz", radius=3)
    assert segment(raw, Path("masks"), params)[1] == 1
    assert len(calls()) == 3
    slow = params.segmentation.model_copy(update={"fast": False})
    segment(raw, Path("masks"), params.model_copy(update={"segmentation": slow}))
    assert len(calls()) == 5
    assert [c["args"].count("--fast") for c in calls()] == [1, 1, 1, 0, 0]


def test_another_version_starts_again_and_statistics_are_off(raw, stand_in, monkeypatch):
    params, calls = stand_in
    segment(raw, Path("masks"), params)
    monkeypatch.setenv("STAND_IN_VERSION", "2.19.0")
    segmentation.program_version.cache_clear()
    segment(raw, Path("masks"), params)
    assert len(calls()) == 4
    assert not any(call["stats"] for call in calls())
    used = {arg for call in calls() for arg in call["args"] if re.match(r"-{1,2}[a-z]", arg)}
    assert used <= DOCUMENTED
    assert all(call["args"][call["args"].index("--task") + 1] == "total_mr" for call in calls())


def test_the_mask_of_several_channels_is_that_of_the_first(raw, stand_in):
    params, calls = stand_in
    path = raw / "a" / "mri_flair.nii.gz"
    image = nib.load(path)
    ball = np.asarray(image.dataobj)
    nib.save(nib.Nifti1Image(np.stack([ball, ball[::-1], 2 * ball], -1), image.affine), path)
    shutil.rmtree(raw / "b")
    data = params.data.model_copy(update={"channels": {"mri_flair": 3}})
    segment(raw, Path("masks"), params.model_copy(update={"data": data}))
    assert len(calls()) == 1
    for mask in (stored_masks(Path("masks"), "a", ["mri_flair"])["mri_flair"], mask_of(path, THRESHOLD, 3)[0]):
        assert np.array_equal(mask, ball > 50)


def test_options_are_those_of_the_real_program():
    """Where TotalSegmentator is installed, its --help documents the options that we use."""
    if not (program := shutil.which("TotalSegmentator")):
        pytest.skip("TotalSegmentator is not installed")
    text = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(re.search(rf"(^|[\s,]){option}\b", text) for option in DOCUMENTED)


def test_a_damaged_entry_is_found_and_made_again(raw):
    path = raw / "a" / "pet.nii.gz"
    mask, _ = mask_of(path, THRESHOLD)
    (entry,) = segmentation.cache_folder().iterdir()
    data = entry.read_bytes()
    for damaged in (data[:-3], data[:80] + b"x" + data[81:], b"", b"{}"):
        entry.write_bytes(damaged)
        again, hit = mask_of(path, THRESHOLD)
        assert not hit
        assert np.array_equal(again, mask)
        assert entry.read_bytes() == data


def test_a_failed_image_is_recorded_and_does_not_affect_the_others(raw, stand_in):
    params, _ = stand_in
    (raw / "broken").mkdir()
    write_ball(raw / "broken" / "mri_flair.nii.gz", radius=3)
    with pytest.raises(
        InputProblemsError, match=r"no weights found; its weights are downloaded at first use, so run it once by hand"
    ):
        segment(raw, Path("masks"), params)
    assert not Path("masks").exists()
    assert len(list(segmentation.cache_folder().iterdir())) == 4  # finished masks stay
    skipping = params.data.model_copy(update={"on_error": "skip"})
    table, made = segment(raw, Path("masks"), params.model_copy(update={"data": skipping}))
    assert made == 0
    assert (table["status"] == "ok").sum() == 4
    assert stored_masks(Path("masks"), "broken", params.data.modalities) == {}
    assert set(stored_masks(Path("masks"), "a", params.data.modalities)) == {"mri_flair", "pet"}


def test_without_the_program_the_error_says_how_to_install_it(here, make_params):
    params = make_params(
        {"fusion.segmentation.segmenter": "totalsegmentator", "fusion.segmentation.totalsegmentator": "/no/such/program"}
    ).fusion
    with pytest.raises(InputError, match=r"no such program; install TotalSegmentator in an environment of its own"):
        segmenter_for(params.segmentation, "mri_t1ce")


def test_brain_structures_has_no_fast_mode(make_params):
    changes = {
        "fusion.segmentation.segmenter": "totalsegmentator",
        "fusion.segmentation.segmenter_tasks": {"mri_t1ce": "brain_structures", "mri_flair": "total_mr", "pet": "none"},
    }
    with pytest.raises(InputError, match="no fast mode"):
        make_params(changes)
    make_params(changes | {"fusion.segmentation.fast": False})


def test_none_is_the_whole_image(raw):
    mask, _ = mask_of(raw / "a" / "pet.nii.gz", Segmenter("none", "", False, "1", ""))
    assert mask.all()


def stage(work, raw, params, **environment):
    (work / "params.yaml").write_text(yaml.safe_dump(params))
    return subprocess.Popen(
        [sys.executable, str(ROOT / "stages" / "fusion_segment.py"), "--raw", str(raw), "--out", str(work / "masks")],
        cwd=work,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environment,
        start_new_session=True,
    )


def test_a_kill_loses_at_most_the_image_in_progress(raw, stand_in, values, here):
    params, calls = stand_in
    changed = with_changes(
        values,
        SMALL
        | {
            "fusion.segmentation.segmenter": "totalsegmentator",
            "fusion.segmentation.totalsegmentator": params.segmentation.totalsegmentator,
            "compute.threads": 1,
            "fusion.data.modalities": ["mri_flair", "pet"],
            "fusion.segmentation.segmenter_tasks": {"mri_flair": "total_mr", "pet": "total"},
        },
    )
    process = stage(here, raw, changed, STAND_IN_SECONDS="0.7")
    while len(calls()) < 3:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (here / "masks").exists()
    done = stage(here, raw, changed)
    output, _ = done.communicate()
    assert done.returncode == 0, output
    assert len(calls()) == 5  # four images; the third was in progress
    assert "4 images, 2 new masks" in output


def test_two_processes_at_once(raw, values, here):
    changed = with_changes(values, SMALL | {"fusion.data.modalities": ["mri_flair", "pet"], "compute.threads": 1})
    works = [here / "one", here / "two"]
    for work in works:
        work.mkdir()
    processes = [stage(work, raw, changed, DVC_ROOT=str(here)) for work in works]
    for process in processes:
        output, _ = process.communicate()
        assert process.returncode == 0, output
    first, second = ((work / "masks" / "masks.zip").read_bytes() for work in works)
    assert first == second
    assert len(list((here / ".cache" / "segmentation").iterdir())) == 4


def test_masks_are_of_the_images(raw, make_params):
    params = make_params({"fusion.data.modalities": ["mri_flair", "pet"]}).fusion
    segment(raw, Path("masks"), params)
    for name, mask in stored_masks(Path("masks"), "b", params.data.modalities).items():
        image = np.asarray(nib.load(raw / "b" / f"{name}.nii.gz").dataobj)
        assert np.array_equal(mask, image > 50)
