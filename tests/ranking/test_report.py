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
    ranking = rank(table, "dice", lower_is_better=False, published={"B": 61.0, "C": 60.0}, bootstrap=100)
    write(ranking, tmp_path / "deep" / "s", title="Study", unit="%", extra=[Section("Fairness", "More to say.")])
    folder = tmp_path / "deep" / "s"
    expected = ["differences.png", "means.png", "ranking.csv", "ranking.html", "ranking.md"]
    assert sorted(p.name for p in folder.iterdir()) == expected
    text = (folder / "ranking.md").read_text(encoding="utf-8")
    assert text.rstrip().endswith(ranking.verdict)
    assert "a\\|b" in text
    page = (folder / "ranking.html").read_text(encoding="utf-8")
    assert "a|b &lt;i&gt;" in page
    assert "a|b <i>" not in page
    assert "More to say." in page
    assert page.count("data:image/png;base64,") == 2
    again = pd.read_csv(folder / "ranking.csv")
    assert list(again.columns) == list(ranking.table.columns)
    assert again["mean"].to_numpy() == pytest.approx(ranking.table["mean"].to_numpy(), rel=1e-5)
    for name in ("means.png", "differences.png"):
        with Image.open(folder / name) as image:
            image.verify()


@pytest.mark.parametrize(("configs", "seeds", "patients"), [(1, 1, 8), (2, 1, 1), (20, 1, 60), (2, 2, 8)])
@pytest.mark.filterwarnings("error")
def test_any_size_is_drawn(tmp_path: Path, configs: int, seeds: int, patients: int) -> None:
    scores = draw(np.random.default_rng(1), configs=configs, seeds=seeds, patients=patients)
    scores = scores if seeds == 1 else np.ones_like(scores)
    ranking = rank(tidy(scores), "dice", lower_is_better=True, bootstrap=20)
    write(ranking, tmp_path, title="Study", unit="")
    assert ranking.verdict in (tmp_path / "ranking.md").read_text(encoding="utf-8")
