import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

from quintet.errors import InputError
from quintet.params import load, parse
from tests.conftest import ROOT, with_changes


def test_shipped_file_is_valid(make_params):
    assert make_params().landmarks.arch == "resnet18"


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("landmarks.arch", "resnet19", ["landmarks.arch", "'resnet18' or 'unet'", "resnet19"]),
        ("landmarks.losses", ["wing", "dice"], ["landmarks.losses", "'symmetry'", "dice"]),
        ("landmarks.epochs", 0, ["landmarks.epochs", "greater than or equal to 1"]),
        ("landmarks.raw", "~/data", ["landmarks.raw", "write the whole path"]),
        ("ct.raw", "$DATA/ct", ["ct.raw", "write the whole path"]),
        ("fusion.raw", "/data/${USER}", ["fusion.raw", "write the whole path"]),
        ("fusion.data.channels", {"dti": 3}, ["channels: dti: no such modality", "mri_t1ce"]),
        ("fusion.data.channels", {"pet": 0}, ["fusion.data.channels.pet", "greater than"]),
        ("fusion.training.own_encoders", {"xray": {"width": 16}}, ["own_encoders: xray: no such modality", "pet, clinical"]),
        ("fusion.training.own_encoders", {"clinical": {"width": 16}}, ["own_encoders.clinical: width", "clinical_units only"]),
        ("fusion.training.own_encoders", {"pet": {"width": 10}}, ["fusion.training.own_encoders.pet.width", "multiple of 8"]),
        ("landmarks.data.size", 97, ["landmarks.data.size", "multiple of 16"]),
        ("landmarks.data.split", "random", ["reference, stratified, grouped"]),
        ("landmarks.arch", "unet", ["head=heatmap"]),
        ("landmarks.training.weights", "imagenet", ["width=64"]),
        ("landmarks.losses", ["symmetry"], ["needs wing"]),
        ("landmarks.losses", ["wing", "wing"], ["listed twice"]),
        ("landmarks.rate_backbone", 0.0, ["rate_backbone > 0"]),
        ("landmarks.learning_rate", 1, ["landmarks.learning_rate", "choose from:", "rate_head"]),
        ("landmarks.configs.finetune.after", "runs/landmarks/sweep/nothing", ["nothing", "frozen"]),
        ("landmarks.configs.frozen.after", "runs/landmarks/sweep/complete", ["in a circle", "frozen"]),
        ("landmarks.configs.finetune.control", "nothing", ["finetune.control", "nothing", "frozen"]),
        ("landmarks.configs.heatmap.epochs", 50, ["heatmap", "50 epochs", "control: none"]),
        ("landmarks.training.patience", 3, ["training.patience", "control: none"]),
        ("landmarks.losses", ["wing", "jensen_shannon"], ["head=heatmap"]),
        ("landmarks.training.frame", "body", ["landmarks.training.frame", "'patient' or 'image'"]),
        ("landmarks.sweep.ensembles", {"mean": ["unknown"]}, ["sweep.ensembles.mean", "unknown"]),
        ("landmarks.sweep.ensembles", {"oracle": ["heatmap"]}, ["oracle", "baseline"]),
        ("perfusion.arch", "unet", ["perfusion.arch", "'shared', 'separate' or 'crossattention'", "unet"]),
        (
            "perfusion.losses",
            ["spacial"],
            ["perfusion.losses", "'spatial', 'complementary', 'multiscale' or 'adaptive'", "spacial"],
        ),
        ("perfusion.losses", ["spatial", "adaptive"], ["spatial and adaptive are forms of one term"]),
        ("perfusion.losses", ["spatial", "spatial"], ["listed twice"]),
        ("perfusion.separate_at", "neck", ["'decoder' or 'head'"]),
        ("perfusion.configs.crossattention.separate_at", "head", ["needs separate_at=decoder"]),
        ("perfusion.sweep.configs", ["shared", "double"], ["double: no such configuration", "crossattention-spatial"]),
        ("perfusion.sweep.folds", [0, 5], ["5 is too large", "0 to 4"]),
        ("perfusion.fold", 7, ["7 is too large"]),
        ("perfusion.sweep.seeds", [1, 1], ["listed twice"]),
        ("perfusion.training.epochs", True, ["perfusion.training.epochs: true and false are not allowed here"]),
        ("landmarks.training.augment.flip", True, ["landmarks.training.augment.flip: true and false"]),
        ("landmarks.sweep.seeds", [0, True], ["landmarks.sweep.seeds: true and false"]),
        ("perfusion.configs.shared.separate_at", "head", ["belongs to arch=separate"]),
        ("breakhis.training.rate_floor", 1.0, ["rate_floor=1 is above rate=0.005"]),
        ("landmarks.sweep.seeds", [0, 0], ["landmarks.sweep", "seeds: an entry is listed twice"]),
        ("landmarks.sweep.ensembles", {"both": ["finetune", "finetune"]}, ["both: a member is listed twice"]),
        ("perfusion.configs.shared.rate", 1, ["perfusion.configs.shared.rate", "choose from:", "separate_at"]),
        ("perfusion.data.split", "random", ["auto or the path of a splits_final.json"]),
        ("perfusion.data.subject_pattern", "(", ["not a regular expression"]),
        ("perfusion.data.subject_pattern", "x", ["(?P<subject>...)"]),
        ("perfusion.training.patch", [72, 55], ["perfusion.training.patch", "multiple of 2"]),
        ("perfusion.training.loss_weights.adaptive", [0.1], ["perfusion.training.loss_weights.adaptive"]),
        ("breakhis.training.backbone", "b7", ["breakhis.training.backbone", "'small', 'b0', 'b1' or 'lite0'"]),
        ("breakhis.magnifications", ["40X", "1000X"], ["breakhis.magnifications", "'400X'", "1000X"]),
        ("breakhis.magnifications", ["40X", "40X"], ["listed twice"]),
        ("ct.data.findings", ["nodules", "nodules"], ["listed twice"]),
        ("breakhis.configs.prior", {"magnifications": ["40X"], "attention": [], "trains": "all"}, ["prior", "baseline"]),
        ("breakhis.magnifications", ["40X"], ["works between magnifications"]),
        ("breakhis.attention", ["temporal"], ["'channel', 'spatial', 'hierarchical' or 'fusion'"]),
        ("breakhis.trains", "linear", ["needs attention=[]"]),
        ("breakhis.data.split", "images", ["grouped, official or the path of a .csv"]),
        ("breakhis.training.weights", "imagenet", ["backbone=b0, b1 or lite0"]),
        ("breakhis.data.size", 100, ["breakhis.data.size", "multiple of 32"]),
        ("breakhis.training.batch_size", "large", ["breakhis.training.batch_size", "auto"]),
        ("breakhis.training.batch_size", 2, ["breakhis.training.batch_size", "greater than or equal to 3"]),
        ("breakhis.training.mixup", float("inf"), ["breakhis.training.mixup", "finite"]),
        ("breakhis.training.schedule", "linear", ["'plateau' or 'cosine'"]),
        ("breakhis.sweep.configs", ["mmnet", "resnet"], ["resnet: no such configuration", "single-400X"]),
        ("breakhis.fold", 5, ["5 is too large"]),
        ("compute.workers", "many", ["compute.workers", "auto"]),
        ("compute.device", "tpu", ["compute.device", "'cuda'"]),
    ],
)
def test_wrong_value_is_named_with_what_is_allowed(make_params, key, value, parts):
    with pytest.raises(InputError) as caught:
        make_params({key: value})
    for part in parts:
        assert part in str(caught.value)


def test_missing_and_all_wrong_values_at_once(values):
    data = {key: value for key, value in values["landmarks"]["data"].items() if key != "size"}
    changed = values | {"landmarks": values["landmarks"] | {"data": data, "arch": "x", "head": "y"}}
    with pytest.raises(InputError) as caught:
        parse(changed)
    assert all(key in str(caught.value) for key in ("landmarks.data.size", "landmarks.arch", "landmarks.head"))


def test_predecessors_form_the_published_chain(make_params):
    configs = make_params().landmarks.configs
    chain = {name: config.predecessor for name, config in configs.items()}
    assert chain == {
        "frozen": None,
        "finetune": "frozen",
        "symmetry": "finetune",
        "continued-3": "finetune",
        "complete": "symmetry",
        "continued-4": "continued-3",
        "attention": "frozen",
        "heatmap": None,
    }


def test_planned_comparisons_of_landmarks_have_equal_budgets(make_params):
    """A phase and its control start from the same weights and differ in the loss alone."""
    section = make_params().landmarks
    configs = section.configs
    assert {name: config.control for name, config in configs.items() if config.control != "none"} == {
        "symmetry": "continued-3",
        "complete": "continued-4",
        "attention": "finetune",
        "heatmap": "complete",
    }
    assert section.total_epochs("heatmap") == sum(configs[name].epochs for name in ("frozen", "finetune", "symmetry", "complete"))
    for name, control in (("symmetry", "continued-3"), ("complete", "continued-4")):
        one, other = configs[name], configs[control]
        assert one.configuration_values() | {"losses": ["wing"]} == other.configuration_values()
    assert configs["symmetry"].after == configs["continued-3"].after


def test_literals_and_registries_agree():
    """The legal names in params/ are the registered ones."""
    from typing import get_args

    from quintet.breakhis.data.classes import MAGNIFICATIONS
    from quintet.breakhis.model.networks import COEFFICIENTS
    from quintet.ct.baselines import BASELINES
    from quintet.ct.model.losses import OBJECTIVES, SELECTORS
    from quintet.ct.model.networks import VARIANTS
    from quintet.ct.phantom import FINDINGS, FOCI
    from quintet.landmarks.model.losses import LOSSES
    from quintet.landmarks.model.networks import ENCODERS, HEADS
    from quintet.params import ct
    from quintet.params.breakhis import STRIDE, BreakHisTraining, Magnification
    from quintet.params.ct import CtConfig, CtPrevalence
    from quintet.params.landmarks import LandmarksConfig, LandmarksLoss, LandmarksLossWeights

    assert set(get_args(BreakHisTraining.model_fields["backbone"].annotation)) == {*COEFFICIENTS, "lite0"} == set(STRIDE)
    assert get_args(Magnification) == MAGNIFICATIONS
    assert set(get_args(CtConfig.model_fields["selector"].annotation)) == {"none", *SELECTORS}
    assert set(get_args(CtConfig.model_fields["objective"].annotation)) == set(OBJECTIVES)
    assert set(get_args(CtConfig.model_fields["arch"].annotation)) == set(VARIANTS)
    assert tuple(BASELINES) == ct.BASELINES
    assert tuple(CtPrevalence.model_fields) == FINDINGS == tuple(FOCI)
    fields = LandmarksConfig.model_fields
    assert set(get_args(fields["arch"].annotation)) == set(ENCODERS)
    assert set(get_args(fields["head"].annotation)) == set(HEADS)
    assert set(get_args(LandmarksLoss)) == set(LOSSES) == set(LandmarksLossWeights.model_fields)


def test_a_stage_reports_a_wrong_value_before_torch_is_imported(tmp_path, values):
    values = values | {"landmarks": values["landmarks"] | {"arch": "vgg"}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-X", "importtime", str(ROOT / "stages" / "landmarks_train.py"), "--data", "x", "--run", "y"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "'resnet18' or 'unet'" in done.stderr
    assert "| torch" not in done.stderr
    assert not (tmp_path / "y").exists()


def test_a_wrong_number_of_threads_is_named(checkout, monkeypatch):
    monkeypatch.setenv("QUINTET_THREADS", "two")
    command = [sys.executable, str(ROOT / "stages" / "landmarks_train.py"), "--data", "x", "--run", "y"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: QUINTET_THREADS=two: expected a number")


def test_libraries_loaded_before_get_the_number_of_threads_too():
    """The driver, which every script imports first, loads numpy and with it BLAS."""
    code = (
        "import quintet.experiment, threadpoolctl, torch\n"
        "from quintet import params, stage\n"
        "stage._with_threads(params.load())\n"
        "print([pool['num_threads'] for pool in threadpoolctl.threadpool_info()])"
    )
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_THREADS")} | {"QUINTET_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    counts = json.loads(done.stdout)
    assert counts
    assert set(counts) == {1}


def test_a_key_that_is_given_twice_is_refused(tmp_path):
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(
        text.replace("  raw: data/synthetic/landmarks", "  raw: /mine\n  raw: data/synthetic/landmarks")
    )
    with pytest.raises(InputError, match=r"the key raw is in line \d+ and in line \d+; delete one"):
        load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text(text.replace("  alpha: 0.05 ", "  alpha: 0.05\n  again: {alpha: 1, alpha: 2} "))
    with pytest.raises(InputError, match="the key alpha is in line"):
        load(tmp_path / "params.yaml")


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "utf-16", "utf-16-be", "utf-32"])
def test_another_encoding_is_named_and_a_byte_order_mark_read(tmp_path, encoding):
    text = "# Größe der Bilder\n" + (ROOT / "params.yaml").read_text(encoding="utf-8")
    path = tmp_path / "params.yaml"
    path.write_bytes(text.encode("utf-8-sig"))
    assert load(path) == load(ROOT / "params.yaml")
    path.write_bytes(text.encode(encoding, errors="replace"))
    with pytest.raises(InputError, match=r"params\.yaml: not UTF-8 .*; save the file as UTF-8"):
        load(path)


def _lists(values, above=()):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _lists(value, (*above, key))
        elif isinstance(value, list):
            yield ".".join((*above, key))


def test_every_list_can_be_overridden_with_an_empty_one(tmp_path, values):
    """As by `dvc exp run -S KEY=[]`: a comment beside a list's key would end up inside the value."""
    from dvc.utils.hydra import apply_overrides

    keys, path = list(_lists(values)), tmp_path / "params.yaml"
    assert len(keys) > 50
    shutil.copy(ROOT / "params.yaml", path)
    apply_overrides(path, [f"{key}=[]" for key in keys])
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == with_changes(values, {key: [] for key in keys})
    for key, given in {
        "breakhis.attention": "[branch]",
        "fusion.data.modalities": "[pet]",
        "ct.training.units": "[16,8]",
    }.items():
        apply_overrides(path, [f"{key}={given}"])
    changed = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert (changed["breakhis"]["attention"], changed["fusion"]["data"]["modalities"]) == (["branch"], ["pet"])
    assert changed["ct"]["training"]["units"] == [16, 8]
