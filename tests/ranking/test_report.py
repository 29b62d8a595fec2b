from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from quintet.pages import Section
from quintet.ranking import rank, write

from .tables import draw, tidy


def test_written_files_open_and_contain_the_verdict(tmp_path: Path) -> None:
    table = tidy(draw(np.random.default_rng(0), shift=4)).replace({"config": {"A": "a|b <i>"}})
    ranking = rank(table, "dice", label="Dice score", lower_is_better=False, published={"B": 61.0, "C": 60.0}, bootstrap=100)
    write(ranking, tmp_path / "deep" / "s", title="Study", unit="%", extra=[Section("Fairness", "More text.")])
    folder = tmp_path / "deep" / "s"
    expected = ["differences.png", "means.png", "ranking.csv", "ranking.html", "ranking.md"]
    assert sorted(p.name for p in folder.iterdir()) == expected
    text = (folder / "ranking.md").read_text(encoding="utf-8")
    assert text.rstrip().endswith(ranking.verdict)
    assert "a\\|b" in text
    page = (folder / "ranking.html").read_text(encoding="utf-8")
    assert "a|b &lt;i&gt;" in page
    assert "a|b <i>" not in page
    assert "More text." in page
    assert "More text." in text
    for written in (text, page):
        assert "Metric: Dice score (%); higher is better." in written
        assert f"Patients: {ranking.patients} (excluded: 0), cases: {ranking.cases}, folds: 1." in written
    assert page.count("data:image/png;base64,") == 2
    saved = pd.read_csv(folder / "ranking.csv")
    assert list(saved.columns) == list(ranking.table.columns)
    assert saved["mean"].to_numpy() == pytest.approx(ranking.table["mean"].to_numpy(), rel=1e-5)
    for name in ("means.png", "differences.png"):
        with Image.open(folder / name) as image:
            image.verify()


@pytest.mark.parametrize(("configs", "seeds", "patients"), [(1, 1, 8), (2, 1, 1), (20, 1, 60), (2, 2, 8)])
@pytest.mark.filterwarnings("error")
def test_any_size_is_plotted(tmp_path: Path, configs: int, seeds: int, patients: int) -> None:
    scores = draw(np.random.default_rng(1), configs=configs, seeds=seeds, patients=patients)
    scores = scores if seeds == 1 else np.ones_like(scores)
    ranking = rank(tidy(scores), "dice", lower_is_better=True, bootstrap=20)
    write(ranking, tmp_path, title="Study", unit="")
    assert ranking.verdict in (tmp_path / "ranking.md").read_text(encoding="utf-8")
