import subprocess
import sys
import time

import pytest
import yaml

from quintet.errors import InputError
from quintet.params import parse, predecessor
from tests.conftest import ROOT


def test_shipped_file_is_valid(make_params):
    assert make_params().landmarks.arch == "resnet18"


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("landmarks.arch", "resnet19", ["landmarks.arch", "'resnet18' or 'unet'", "resnet19"]),
        ("landmarks.losses", ["wing", "dice"], ["landmarks.losses", "'symmetry'", "dice"]),
        ("landmarks.epochs", 0, ["landmarks.epochs", "greater than or equal to 1"]),
        ("landmarks.size", 97, ["landmarks.size", "multiple of 16"]),
        ("landmarks.split", "random", ["reference, stratified, grouped"]),
        ("landmarks.arch", "unet", ["head=heatmap"]),
        ("landmarks.weights", "imagenet", ["width=64"]),
        ("landmarks.losses", ["symmetry"], ["needs wing"]),
        ("landmarks.losses", ["wing", "wing"], ["stands twice"]),
        ("landmarks.rate_backbone", 0.0, ["rate_backbone > 0"]),
        ("landmarks.learning_rate", 1, ["landmarks.learning_rate", "there are:", "rate_head"]),
        ("landmarks.configs.finetune.after", "runs/landmarks/sweep/nothing", ["nothing", "frozen"]),
        ("perfusion.arch", "unet", ["perfusion.arch", "'shared', 'separate' or 'crossattention'", "unet"]),
        (
            "perfusion.losses",
            ["spacial"],
            ["perfusion.losses", "'spatial', 'complementary', 'multiscale' or 'adaptive'", "spacial"],
        ),
        ("perfusion.losses", ["spatial", "adaptive"], ["spatial and adaptive are forms of one term"]),
        ("perfusion.losses", ["spatial", "spatial"], ["stands twice"]),
        ("perfusion.separate_at", "neck", ["'decoder' or 'head'"]),
        ("perfusion.configs.crossattention.separate_at", "head", ["needs separate_at=decoder"]),
        ("perfusion.sweep.configs", ["shared", "double"], ["double: no such configuration", "crossattention-spatial"]),
        ("perfusion.sweep.folds", [0, 5], ["5 is too large", "0 to 4"]),
        ("perfusion.fold", 7, ["7 is too large"]),
        ("perfusion.sweep.seeds", [1, 1], ["stands twice"]),
        ("perfusion.split", "random", ["auto or the path of a splits_final.json"]),
        ("perfusion.subject_pattern", "(", ["no regular expression"]),
        ("perfusion.subject_pattern", "x", ["(?P<subject>...)"]),
        ("perfusion.patch", [72, 55], ["perfusion.patch", "multiple of 2"]),
        ("perfusion.loss_weights.adaptive", [0.1], ["perfusion.loss_weights.adaptive"]),
        ("breakhis.backbone", "b7", ["breakhis.backbone", "'small', 'b0' or 'b1'"]),
        ("breakhis.magnifications", ["40X", "1000X"], ["breakhis.magnifications", "'400X'", "1000X"]),
        ("breakhis.magnifications", ["40X", "40X"], ["stands twice"]),
        ("breakhis.magnifications", ["40X"], ["stands between magnifications"]),
        ("breakhis.attention", ["temporal"], ["'channel', 'spatial', 'hierarchical' or 'fusion'"]),
        ("breakhis.trains", "linear", ["needs attention=[]"]),
        ("breakhis.split", "images", ["grouped, official or the path of a .csv"]),
        ("breakhis.weights", "imagenet", ["backbone=b0 or b1"]),
        ("breakhis.size", 100, ["breakhis.size", "multiple of 32"]),
        ("breakhis.batch_size", "large", ["breakhis.batch_size", "auto"]),
        ("breakhis.batch_size", 2, ["breakhis.batch_size", "greater than or equal to 3"]),
        ("breakhis.mixup", float("inf"), ["breakhis.mixup", "finite"]),
        ("breakhis.schedule", "linear", ["'plateau' or 'cosine'"]),
        ("breakhis.sweep.configs", ["mmnet", "resnet"], ["resnet: no such configuration", "single-400X"]),
        ("breakhis.fold", 5, ["5 is too large"]),
        ("compute.workers", "many", ["compute.workers", "auto"]),
        ("compute.device", "tpu", ["compute.device", "'cuda'"]),
    ],
)
def test_wrong_value_is_named_with_what_is_allowed(make_params, key, value, says):
    with pytest.raises(InputError) as caught:
        make_params({key: value})
    for part in says:
        assert part in str(caught.value)


def test_missing_and_all_wrong_values_at_once(values):
    changed = values | {"landmarks": {k: v for k, v in values["landmarks"].items() if k != "size"} | {"arch": "x", "head": "y"}}
    with pytest.raises(InputError) as caught:
        parse(changed)
    assert all(key in str(caught.value) for key in ("landmarks.size", "landmarks.arch", "landmarks.head"))


def test_predecessors_form_the_published_chain(make_params):
    configs = make_params().landmarks.configs
    chain = {name: predecessor(config) for name, config in configs.items()}
    assert chain == {
        "frozen": None,
        "finetune": "frozen",
        "symmetry": "finetune",
        "complete": "symmetry",
        "attention": "frozen",
        "heatmap": None,
    }


def test_literals_and_registries_agree():
    """The legal names of params.py are the registered ones."""
    from typing import get_args

    from quintet.breakhis.networks import COEFFICIENTS
    from quintet.breakhis.tree import MAGNIFICATIONS
    from quintet.ct.losses import SELECTORS
    from quintet.ct.networks import VARIANTS
    from quintet.landmarks.losses import LOSSES
    from quintet.landmarks.networks import ENCODERS, HEADS
    from quintet.params.breakhis import STRIDE, BreakHis, Magnification
    from quintet.params.ct import CtConfig
    from quintet.params.landmarks import LandmarksChoice, LandmarksLoss, LandmarksLossWeights

    assert set(get_args(BreakHis.model_fields["backbone"].annotation)) == set(COEFFICIENTS) == set(STRIDE)
    assert get_args(Magnification) == MAGNIFICATIONS
    assert set(get_args(CtConfig.model_fields["selector"].annotation)) == {"none", *SELECTORS}
    assert set(get_args(CtConfig.model_fields["arch"].annotation)) == set(VARIANTS)
    fields = LandmarksChoice.model_fields
    assert set(get_args(fields["arch"].annotation)) == set(ENCODERS)
    assert set(get_args(fields["head"].annotation)) == set(HEADS)
    assert set(get_args(LandmarksLoss)) == set(LOSSES) == set(LandmarksLossWeights.model_fields)


def test_a_stage_answers_within_two_seconds_without_torch(tmp_path, values):
    values = values | {"landmarks": values["landmarks"] | {"arch": "vgg"}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-X", "importtime", str(ROOT / "stages" / "landmarks_train.py"), "--data", "x", "--run", "y"]
    started = time.monotonic()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    assert done.returncode == 2
    assert "'resnet18' or 'unet'" in done.stderr
    assert "| torch" not in done.stderr
    assert seconds < 10  # a loaded machine; the import list above is the real check
    assert not (tmp_path / "y").exists()


def test_a_wrong_number_of_threads_is_named(checkout, monkeypatch):
    monkeypatch.setenv("QUINTET_THREADS", "two")
    command = [sys.executable, str(ROOT / "stages" / "landmarks_train.py"), "--data", "x", "--run", "y"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: QUINTET_THREADS=two: expected a number")
