"""What every study promises, tested once for all five: seeds, resuming, refusals, and what a run folder holds."""

import gzip
import hashlib
import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from quintet import experiment, results
from quintet.errors import InputError
from quintet.params import Params, StudyName, parse
from quintet.runs import Record, load_evaluated
from quintet.study import load_study
from tests.conftest import ROOT, equal, merged, state_of

STUDIES = [study.value for study in StudyName]
HERE = {"compute": {"device": "cpu", "threads": 1}}
PLATEAU = {"schedule": "plateau", "plateau_patience": 0, "patience": 4, "batch_size": "auto"}
RESUMED = {  # schedules, early stopping and moving averages must survive a kill, too
    "landmarks": {"epochs": 4, "training": {"weight_averaging": 0.9}},
    "perfusion": {"training": {"epochs": 4}},
    "breakhis": {"training": {"epochs": 4, **PLATEAU}},
    "ct": {
        "objective": "triplet",
        "selector": "semi_hard",
        "training": {"epochs": 4, "schedule": "step", "step_epochs": 2, "patience": 4},
    },
    "fusion": {"training": {"epochs": 4, "diffusion": {"target": "teacher"}}},
}

DRAWN = {  # md5 of what each study draws at the smallest scale
    "landmarks": "e096e0f96b698d4d68249bcb45810bd4",
    "perfusion": "74002684351dc65b0b656652eee68518",
    "breakhis": "1aa6c86f7aa658e8e92f7de4fbfe9b99",
    "ct": "ee091c8c9defe9d2cb40d98c6b985cad",
    "fusion": "3a283949695bacec2ebfa77f87e05e91",
}
# names that laboratories use; every table and file system can hold them
ODD = (
    *(
        "P1",
        "P1_0000",
        "P10",
        "p.1.2.3",
        "Müller",
        "MÜNCHEN 3",
        "Łódź",
        "日本",
        "Ærø (2)",
        "a b  c",
        "x+y",
        "50%",
        "#7",
        "O'Brien",
    ),
    *("007", "1e5", "+1", "TRUE", "-v1", "_", "ROI_seg", "t1.mean", "final_FINAL2", "Σ&Δ", "~tmp", "name.nii", "[1]", "$HOME"),
)
# what a study's prediction is called, and the folder of its cases below the raw one
PREDICTED = {"perfusion": ("", "imagesTr"), "ct": (".npz", "."), "landmarks": (".csv", "images")}
BREAKHIS = ("1-1", "14-00001", "99-9A", "14-4659", "14-46590", "08-22549AB", "08-22550CD", "2024-1Z")


@pytest.fixture(scope="session")
def smoke(values) -> dict[str, Any]:
    """The smallest scale at which every stage runs."""
    return merged(merged(values, yaml.safe_load((ROOT / "presets" / "smoke.yaml").read_text())), HERE)


@pytest.fixture(scope="session")
def params(smoke) -> Params:
    return parse(smoke)


def run_stage_main(name: str, params: Params, **paths: Path) -> str:
    spec = importlib.util.spec_from_file_location(name, ROOT / "stages" / f"{name}.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(params, **paths)


@pytest.fixture(scope="session", params=STUDIES)
def prepared(request, params, tmp_path_factory) -> tuple[str, Path]:
    """Study and prepared data, made by the study's own stages."""
    study, folder = request.param, tmp_path_factory.mktemp(request.param)
    raw, data, masks = folder / "raw", folder / "data", folder / "masks"
    run_stage_main(f"{study}_synthesize", params, out=raw)
    further = {}
    if study == "fusion":
        run_stage_main("fusion_segment", params, raw=raw, out=masks)
        further = {"masks": masks}
    summary = run_stage_main(f"{study}_prepare", params, raw=raw, out=data, page=folder / "data.html", **further)
    assert str(data) in summary
    assert (folder / "data.html").stat().st_size > 10_000
    return study, data


@pytest.fixture(scope="session")
def swept(prepared, params, tmp_path_factory) -> Path:
    """A finished run of the sweep: the study's first configuration that starts from nothing."""
    study, data = prepared
    folder = tmp_path_factory.mktemp(f"{study}-sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # checkpoints go here; without a dvc.yaml nothing is mirrored
        experiment.run_sweep_entry(study, params, data, folder / "run", first_config(params, study), seed=0)
    return folder / "run"


def test_drawn_data_are_the_same_on_every_machine(prepared):
    """BLAS and vectorised functions differ in their last digit between processors; what is stored must not."""
    study, data = prepared
    digest = hashlib.md5(usedforsecurity=False)
    for path in sorted(path for path in (data.parent / "raw").rglob("*") if path.is_file()):
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        digest.update(path.relative_to(data.parent / "raw").as_posix().encode() + content)
    assert digest.hexdigest() == DRAWN[study]


def first_config(params: Params, study: str) -> str:
    return next(iter(params.of(study).sweep_runs()))


def test_a_run_folder_holds_record_model_and_evaluation(prepared, swept, params):
    study, _ = prepared
    record = Record.load(swept)
    assert (record.study, record.stage, record.seed) == (study, f"{study}_sweep", 0)
    assert record.inputs.keys() >= {"data"}
    assert torch.load(swept / "model" / "model.pt", weights_only=True).keys() == {"state_dict", "build"}
    assert "epoch" in (swept / "model" / "history.csv").read_text().splitlines()[0]
    cases = results.read([swept / "evaluation" / "cases.csv"])
    assert set(cases["study"]) == {study}
    metrics = json.loads((swept / "evaluation" / "metrics.json").read_text())
    assert metrics
    assert all(isinstance(value, float) for value in metrics.values())
    settings = params.of(study).evaluation_values()
    assert (swept / "evaluation" / "settings.json").is_file() == bool(settings)
    assert not list(swept.parent.glob(".checkpoints/*"))
    assert not list(swept.parent.glob(".*part*"))


def test_the_record_is_read_as_it_was_written_and_settings_change_the_key(swept, tmp_path):
    record = Record.load(swept)
    record.save(tmp_path)
    assert (tmp_path / "record.json").read_bytes() == (swept / "record.json").read_bytes()
    evaluated, settings = load_evaluated(swept), swept / "evaluation" / "settings.json"
    assert (evaluated.key != record.key) == settings.is_file()
    assert settings.is_file() == ("trained_key" in evaluated.tags)


def test_another_seed_gives_other_weights(prepared, swept, params, tmp_path, monkeypatch):
    study, data = prepared
    monkeypatch.chdir(tmp_path)
    experiment.run_sweep_entry(study, params, data, tmp_path / "run", first_config(params, study), seed=1)
    assert not equal(state_of(tmp_path / "run"), state_of(swept))


def test_a_sweep_run_is_trained_again_only_where_training_changed(prepared, swept, params, tmp_path, monkeypatch):
    """DVC keeps the outputs of sweep runs until they are replaced (`persist`), so that a new evaluation can reuse the model.
    Trained again with the same seed, it has the same weights and scores."""
    study, data = prepared
    monkeypatch.chdir(tmp_path)
    shutil.copytree(swept, tmp_path / "run")
    config, started = first_config(params, study), Record.load(swept).tags["started"]
    experiment.run_sweep_entry(study, params, data, tmp_path / "run", config, seed=0)
    assert Record.load(tmp_path / "run").tags["started"] == started
    monkeypatch.setattr(experiment, "code_md5", lambda: "another version of the code")
    experiment.run_sweep_entry(study, params, data, tmp_path / "run", config, seed=0)
    assert Record.load(tmp_path / "run").tags["code_md5"] == "another version of the code"
    assert equal(state_of(tmp_path / "run"), state_of(swept))
    assert (tmp_path / "run" / "evaluation" / "cases.csv").read_bytes() == (swept / "evaluation" / "cases.csv").read_bytes()


def test_a_selected_run_is_reused_in_its_place(prepared, swept, params, tmp_path, monkeypatch):
    """Its evaluation runs again under the experiment that asked for it; a kill while another one is saved leaves no record."""
    study, data = prepared
    monkeypatch.chdir(tmp_path)
    run, config = shutil.copytree(swept, tmp_path / "run"), first_config(params, study)
    entry = experiment.Run(f"{study}_sweep", config, params.of(study).configs[config], 0, 0)
    monkeypatch.setenv("DVC_EXP_NAME", "second")
    record = experiment._train(study, params, data, run, entry, previous=run)
    assert record.tags["started"] == Record.load(swept).tags["started"]
    assert record.tags["dvc_exp_name"] == "second"
    assert equal(state_of(run), state_of(swept))

    class Killed:
        def save(self, folder: Path) -> None:
            raise SystemExit(9)

    monkeypatch.setattr(load_study(study), "train", lambda *_: Killed())
    with pytest.raises(SystemExit):
        experiment._train(study, params, data, run, replace(entry, seed=1), previous=run)
    assert not (run / "record.json").exists()


def test_killed_and_run_again_equals_left_alone(prepared, smoke, tmp_path, monkeypatch):
    """kill -9 a training stage after its second epoch and run it again: weights and tables equal those of a run left alone in
    another process."""
    study, data = prepared
    values = merged(smoke, {study: RESUMED[study]})
    script = f"{study}_train"
    for work in (tmp_path / "alone", tmp_path / "killed"):
        work.mkdir()
    (tmp_path / "killed" / "params.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-u", str(ROOT / "stages" / f"{script}.py"), "--data", str(data), "--run", "run"]
    process = subprocess.Popen(command, cwd=tmp_path / "killed", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 2/4"):
            process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "run" / "record.json").exists()
    for work in (tmp_path / "alone", tmp_path / "killed"):
        monkeypatch.chdir(work)
        with redirect_stdout(StringIO()) as output:
            run_stage_main(script, parse(values), data=data, run=Path("run"))
        assert ("resuming from" in output.getvalue()) == (work.name == "killed")
        assert ("epoch 1/4" in output.getvalue()) == (work.name == "alone")
    assert equal(state_of(tmp_path / "alone" / "run"), state_of(tmp_path / "killed" / "run"))
    tables = sorted((tmp_path / "alone" / "run" / "model").glob("*.csv"))
    assert tables
    for table in tables:
        assert table.read_bytes() == (tmp_path / "killed" / "run" / "model" / table.name).read_bytes(), table.name


def test_a_fold_that_the_data_does_not_have_is_refused(prepared, params, tmp_path, monkeypatch):
    study, data = prepared
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"fold 7: .* folds, numbered from 0; run {study}_prepare again"):
        experiment.run_sweep_entry(study, params, data, tmp_path / "run", first_config(params, study), fold=7, seed=0)
    assert not list(tmp_path.glob("*run*"))


def test_an_unknown_configuration_is_refused(prepared, params, tmp_path, monkeypatch):
    study, data = prepared
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="--config nonsense: no such configuration; choose one of "):
        experiment.run_sweep_entry(study, params, data, tmp_path / "run", "nonsense", seed=0)
    assert not list(tmp_path.iterdir())


def test_a_model_of_another_study_is_refused(prepared, swept, tmp_path):
    study, _ = prepared
    for other in STUDIES:
        if other != study:
            with pytest.raises(InputError, match=r"a model of another study|not evaluated"):
                load_study(other).load_models([swept], "cpu")


@pytest.mark.parametrize("name", ["x.xlsx", "x.json", "x"])
def test_tables_are_not_written_under_another_format_s_name(prepared, swept, tmp_path, name):
    study, data = prepared
    if load_study(study).PREDICTS_FOLDER:
        return
    with pytest.raises(InputError, match=r"x[.a-z]*: .*choose a.* \.?csv"):
        experiment.predict_folder(study, [swept], data.parent / "raw", tmp_path / name, overlays=None, device="cpu", skip=False)
    assert not list(tmp_path.iterdir())


def test_automatic_precision_is_part_of_the_run_s_identity(prepared, params, monkeypatch):
    study, _ = prepared
    section = params.of(study)
    automatic = section.model_copy(update={"training": section.training.model_copy(update={"precision": "auto"})})
    keys = set()
    for supported, precision in ((True, "bf16"), (False, 32)):
        monkeypatch.setattr("quintet.training.hardware.cpu_computes_bf16", lambda supported=supported: supported)
        resolved = experiment.resolve_precision_of(automatic, params.compute)
        assert resolved.training_values()["precision"] == precision
        keys.add(Record(study, "s", "c", 0, resolved.training_values(), {}).key)
    assert len(keys) == 2


def test_debugging_is_part_of_the_run_s_identity(prepared, params, swept, tmp_path, monkeypatch):
    """It trains without augmentation."""
    study, data = prepared
    monkeypatch.chdir(tmp_path)
    compute = params.compute.model_copy(update={"debug": True})
    debugged = params.model_copy(update={"compute": compute})
    experiment.run_sweep_entry(study, debugged, data, tmp_path / "run", first_config(params, study), seed=0)
    assert Record.load(tmp_path / "run").key != Record.load(swept).key


def test_the_ranking_reads_the_baselines_of_every_fold(prepared, params, tmp_path, monkeypatch):
    study, data = prepared
    monkeypatch.chdir(tmp_path)
    section = params.of(study)
    metrics = experiment.run_baselines(study, params, data, tmp_path / "baselines")
    for folder in (tmp_path / "baselines", tmp_path / "baselines" / next(iter(metrics))):
        (folder / ".DS_Store").touch()
    runs = experiment.run_folders(section, tmp_path / "sweep", tmp_path / "baselines", tmp_path / "absent")
    assert runs.keys() == section.sweep_runs().keys() | metrics.keys()
    for name in metrics:
        assert {run.name: Record.load(run).fold for run in runs[name]} == section.sweep.untrained_runs
        for run in runs[name]:
            assert set(results.read([run / "evaluation" / "cases.csv"])["fold"]) == {Record.load(run).fold}


def people_of(study: str, raw: Path) -> list[str]:
    """Names that the raw folder gives its people, or its cases where a person has one."""
    if study == "perfusion":
        cases = sorted(path.name.removesuffix(".nii.gz") for path in (raw / "labelsTr").iterdir())
        people = sorted({case.partition("-v")[0] for case in cases})
        return [p if f"{p}-v2" in cases else f"{p}-v1" for p in people]
    if study == "breakhis":
        return sorted({path.parent.name.rpartition("_")[2] for path in raw.glob("*/SOB/*/*/40X")})
    if study == "landmarks":
        return sorted(path.stem.rpartition("-")[2] for path in raw.glob("images/Normal/*"))
    return sorted(path.name.removesuffix(".nii.gz") for path in raw.iterdir() if path.suffix != ".csv")


def renamed(text: str, names: dict[str, str], study: str) -> str:
    before = "Normal-" if study == "landmarks" else ""
    pattern = before + "(" + "|".join(sorted(map(re.escape, names), key=len, reverse=True)) + r")(?!\d)"
    return re.sub(pattern, lambda found: before + names[found[1]], text)


def copy_renamed(raw: Path, out: Path, names: dict[str, str], study: str) -> None:
    for path in sorted(raw.rglob("*")):
        if path.is_file():
            target = out / renamed(str(path.relative_to(raw)), names, study)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix in (".csv", ".json"):
                target.write_text(renamed(path.read_text(encoding="utf-8"), names, study), encoding="utf-8")
            else:
                shutil.copyfile(path, target)


def predictions(path: Path) -> Iterator[tuple[str, object]]:
    if path.is_dir():
        for file in path.iterdir():
            yield from predictions(file) if file.suffix == ".csv" else [(file.name, file.read_bytes())]
    elif path.suffix == ".npz":
        with np.load(path) as file:
            yield from zip(file["id"].tolist(), file["vector"].tolist(), strict=True)
    else:
        for line in path.read_text(encoding="utf-8").splitlines():
            yield re.sub(r"^\d+,(?=\d)", "", line), None  # the first cell of a landmark row is its number


def test_odd_names_raise_no_alarm_and_change_no_prediction(prepared, swept, params, tmp_path, capsys):
    study, data = prepared
    raw, odd = data.parent / "raw", tmp_path / "Ärzte & Söhne v1.2 (Kopie)" / "raw.d"
    people = people_of(study, raw)
    names = dict(zip(people, BREAKHIS if study == "breakhis" else ODD, strict=False))
    assert len(names) >= 8
    copy_renamed(raw, odd, names, study)
    lines = []
    for folder in (raw, odd):
        capsys.readouterr()
        assert load_study(study).check(folder, params.of(study)) == []
        lines.append(capsys.readouterr().out.splitlines())
    assert len(lines[0]) == len(lines[1]), lines
    further = {}
    if study == "fusion":
        further = {"masks": tmp_path / "masks"}
        run_stage_main("fusion_segment", params, raw=odd, out=tmp_path / "masks")
    run_stage_main(f"{study}_prepare", params, raw=odd, out=tmp_path / "data", page=tmp_path / "data.html", **further)
    suffix, below = PREDICTED.get(study, (".csv", "."))
    found = []
    for folder, output in ((raw, tmp_path / f"plain{suffix}"), (odd, tmp_path / f"odd{suffix}")):
        experiment.predict_folder(study, [swept], folder / below, output, overlays=None, device="cpu", skip=False)
        found.append(dict(predictions(output)))
    assert {renamed(name, names, study): value for name, value in found[0].items()} == found[1]


def test_figures_and_a_run_given_twice_change_no_prediction(prepared, swept, tmp_path):
    """A figure that leaves something behind in the network would change the cases after it."""
    study, data = prepared
    if study == "ct":
        pytest.skip("its predictions have no figures, and several runs are joined instead of averaged")
    suffix, below = PREDICTED.get(study, (".csv", "."))
    found = []
    for runs, figures in (([swept], None), ([swept, swept], tmp_path / "figures")):
        output = tmp_path / f"by-{len(runs)}{suffix}"
        experiment.predict_folder(study, runs, data.parent / "raw" / below, output, overlays=figures, device="cpu", skip=False)
        found.append(dict(predictions(output)))
    assert found[0] == found[1]
    assert len(list((tmp_path / "figures").iterdir())) > 1
