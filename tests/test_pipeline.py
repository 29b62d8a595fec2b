"""dvc.yaml against the code: every expanded stage names existing scripts, sources and parameters, and the ones it really uses."""

import ast
import os
import re
from pathlib import Path

import pytest
import yaml

from quintet.breakhis import study as breakhis
from quintet.ct import study as ct
from quintet.fusion import data as fusion_data
from quintet.fusion import study as fusion
from quintet.landmarks import study as landmarks
from quintet.params import BreakHisChoice, CtChoice, FusionChoice, LandmarksChoice, PerfusionChoice
from quintet.perfusion import study as perfusion
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def stages():
    from dvc.repo import Repo

    before = Path.cwd()
    os.chdir(ROOT)
    try:
        return {stage.addressing: stage for stage in Repo(".").index.stages}
    finally:
        os.chdir(before)


def params_of(stage) -> set[str]:
    return {key for dep in stage.deps if hasattr(dep, "params") for key in dep.params}


def paths_of(stage) -> set[str]:
    return {dep.def_path for dep in stage.deps if not hasattr(dep, "params")}


def test_all_stages_are_there(stages, values):
    cells = {f"landmarks_sweep@{name}" for name in values["landmarks"]["configs"]}
    single = {f"landmarks_{name}" for name in ("synthesize", "prepare", "train", "evaluate", "baselines", "rank")}
    sweep = values["perfusion"]["sweep"]
    cells |= {f"perfusion_sweep@{c}-{f}-{s}" for c in sweep["configs"] for f in sweep["folds"] for s in sweep["seeds"]}
    single |= {f"perfusion_{name}" for name in ("synthesize", "prepare", "train", "evaluate", "rank")}
    sweep = values["breakhis"]["sweep"]
    cells |= {f"breakhis_sweep@{c}-{f}-{s}" for c in sweep["configs"] for f in sweep["folds"] for s in sweep["seeds"]}
    single |= {f"breakhis_{name}" for name in ("synthesize", "prepare", "train", "evaluate", "rank")}
    sweep = values["ct"]["sweep"]
    cells |= {f"ct_sweep@{c}-{s}" for c in sweep["configs"] for s in sweep["seeds"]}
    single |= {f"ct_{name}" for name in ("synthesize", "prepare", "train", "evaluate", "baselines", "rank")}
    sweep = values["fusion"]["sweep"]
    cells |= {f"fusion_sweep@{c}-{s}" for c in sweep["configs"] for s in sweep["seeds"]}
    single |= {f"fusion_{name}" for name in ("synthesize", "segment", "prepare", "train", "evaluate", "baselines", "rank")}
    assert set(stages) == cells | single | {"report"}
    assert len(cells) == 6 + 14 + 10 + 2 + 4


def test_scripts_sources_and_parameters_exist(stages, values):
    checked = 0
    for name, stage in stages.items():
        script = re.search(r"stages/\w+\.py", stage.cmd).group()
        assert script == f"stages/{name.partition('@')[0]}.py"
        assert script in paths_of(stage), name
        for path in paths_of(stage):
            if path.startswith(("src", "stages", "splits")):
                assert (ROOT / path).exists(), (name, path)
                checked += 1
        for key in params_of(stage):
            part = values
            for piece in key.split("."):
                part = part[piece]
            checked += 1
    assert checked > 600


def test_training_stages_depend_on_exactly_what_they_read(stages):
    shared = {f"landmarks.{name}" for name in landmarks.TRAINING}
    own = {f"landmarks.{name}" for name in (*LandmarksChoice.model_fields, "start_from", "seed")}
    evaluation = {f"landmarks.{name}" for name in landmarks.EVALUATION}
    assert params_of(stages["landmarks_train"]) == shared | own
    assert params_of(stages["landmarks_evaluate"]) == evaluation | {"landmarks.figures"}
    cell = params_of(stages["landmarks_sweep@heatmap"])
    assert cell == shared | evaluation | {"landmarks.configs.heatmap", "landmarks.sweep.seeds"}
    shared = {f"perfusion.{name}" for name in perfusion.TRAINING}
    own = {f"perfusion.{name}" for name in PerfusionChoice.model_fields}
    evaluation = {f"perfusion.{name}" for name in (*perfusion.EVALUATION, "save_probabilities")}
    assert params_of(stages["perfusion_train"]) == shared | own
    assert params_of(stages["perfusion_evaluate"]) == evaluation
    cell = params_of(stages["perfusion_sweep@separate-spatial-0-0"])
    assert cell == shared | evaluation | {"perfusion.configs.separate-spatial"}
    shared = {f"breakhis.{name}" for name in breakhis.TRAINING}
    own = {f"breakhis.{name}" for name in BreakHisChoice.model_fields}
    assert params_of(stages["breakhis_train"]) == shared | own
    assert params_of(stages["breakhis_evaluate"]) == set()
    assert params_of(stages["breakhis_sweep@concat-3-0"]) == shared | {"breakhis.configs.concat"}
    shared = {f"ct.{name}" for name in ct.TRAINING}
    assert params_of(stages["ct_train"]) == shared | {f"ct.{name}" for name in CtChoice.model_fields}
    assert params_of(stages["ct_evaluate"]) == {"ct.neighbours"}
    assert params_of(stages["ct_sweep@adaptive-semi-hard-0"]) == shared | {"ct.configs.adaptive-semi-hard"}
    shared = {f"fusion.{name}" for name in fusion.TRAINING}
    assert params_of(stages["fusion_train"]) == shared | {f"fusion.{name}" for name in FusionChoice.model_fields}
    scored = {f"fusion.{name}" for name in fusion.EVALUATION}
    assert params_of(stages["fusion_evaluate"]) == scored
    assert params_of(stages["fusion_sweep@late-0"]) == shared | {"fusion.configs.late"} | scored
    assert params_of(stages["fusion_prepare"]) >= {f"fusion.{name}" for name in fusion_data.PREPARATION}


@pytest.mark.parametrize(
    ("study", "choice"),
    [
        ("landmarks", LandmarksChoice),
        ("perfusion", PerfusionChoice),
        ("breakhis", BreakHisChoice),
        ("ct", CtChoice),
        ("fusion", FusionChoice),
    ],
)
def test_selected_choice_touches_nothing_of_the_sweep(stages, study, choice):
    names = {f"{study}.{name}" for name in choice.model_fields}
    assert {name for name, stage in stages.items() if params_of(stage) & names} == {f"{study}_train"}


def test_sources_a_stage_imports_are_its_dependencies(stages):
    """Every module of the study that a stage's script loads (directly or not) stands in its deps, so that a change re-runs it."""
    used = {
        "landmarks_synthesize": "quintet.landmarks.synthetic",
        "landmarks_prepare": "quintet.landmarks.analysis",
        "landmarks_train": "quintet.landmarks.module",
        "landmarks_evaluate": "quintet.landmarks.inference",
        "landmarks_baselines": "quintet.landmarks.baselines",
        "landmarks_sweep@heatmap": "quintet.landmarks.inference",
        "landmarks_rank": "quintet.landmarks.comparison",
        "perfusion_synthesize": "quintet.perfusion.synthetic",
        "perfusion_prepare": "quintet.perfusion.analysis",
        "perfusion_train": "quintet.perfusion.module",
        "perfusion_evaluate": "quintet.perfusion.inference",
        "perfusion_sweep@shared-0-0": "quintet.perfusion.inference",
        "perfusion_rank": "quintet.perfusion.comparison",
        "breakhis_synthesize": "quintet.breakhis.synthetic",
        "breakhis_prepare": "quintet.breakhis.analysis",
        "breakhis_train": "quintet.breakhis.module",
        "breakhis_evaluate": "quintet.breakhis.inference",
        "breakhis_sweep@mmnet-0-0": "quintet.breakhis.inference",
        "breakhis_rank": "quintet.breakhis.comparison",
        "ct_synthesize": "quintet.ct.synthetic",
        "ct_prepare": "quintet.ct.analysis",
        "ct_train": "quintet.ct.module",
        "ct_evaluate": "quintet.ct.inference",
        "ct_baselines": "quintet.ct.study",
        "ct_sweep@adaptive-micro-f1-0": "quintet.ct.inference",
        "ct_rank": "quintet.ct.comparison",
        "fusion_synthesize": "quintet.fusion.synthetic",
        "fusion_segment": "quintet.fusion.segmentation",
        "fusion_prepare": "quintet.fusion.analysis",
        "fusion_train": "quintet.fusion.module",
        "fusion_evaluate": "quintet.fusion.inference",
        "fusion_baselines": "quintet.fusion.study",
        "fusion_sweep@diffusion-0": "quintet.fusion.inference",
        "fusion_rank": "quintet.fusion.comparison",
    }
    for name, module in used.items():
        loaded = {path for path in imported(module) if re.match(r"src/quintet/(landmarks|perfusion|breakhis|ct|fusion)/", path)}
        assert loaded
        assert loaded <= paths_of(stages[name]), name


def imported(module: str) -> set[str]:
    """The package's files that importing a module loads, by the import statements outside of functions."""
    found: set[str] = set()
    left = [module]
    while left:
        path = f"src/{left.pop().replace('.', '/')}.py"
        if path in found or not (ROOT / path).is_file():
            continue
        found.add(path)
        for node in ast.parse((ROOT / path).read_text()).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("quintet"):
                left += [str(node.module), *(f"{node.module}.{name.name}" for name in node.names)]
            elif isinstance(node, ast.Import):
                left += [name.name for name in node.names if name.name.startswith("quintet")]
    return found


@pytest.mark.parametrize("name", ["demo", "paper", "best", "top3", "smoke"])
def test_presets_are_valid_and_demo_takes_them_back(name, tmp_path):
    from quintet.presets import apply_preset

    for part in ("params.yaml", "presets"):
        target = tmp_path / part
        if (ROOT / part).is_dir():
            target.mkdir()
            for file in (ROOT / part).iterdir():
                (target / file.name).write_text(file.read_text())
        else:
            target.write_text((ROOT / part).read_text())
    changed = apply_preset(tmp_path, name, None)
    assert bool(changed) == (name != "demo")
    apply_preset(tmp_path, "demo", None)
    assert yaml.safe_load((tmp_path / "params.yaml").read_text()) == yaml.safe_load((ROOT / "params.yaml").read_text())
    assert "# Shared by the selected configuration and the sweep" in (tmp_path / "params.yaml").read_text()
