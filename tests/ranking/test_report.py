from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from quintet.pages import Section
from quintet.ranking import is_better, rank, write

from .tables import draw, tidy


def test_written_files_open_and_contain_the_verdict(tmp_path: Path) -> None:
    table = tidy(draw(np.random.default_rng(0), shift=4)).replace({"config": {"A": "a|b <i>"}})
    questions = [is_better("a|b <i>", "B"), is_better("B", "absent")]
    published = {"B": 61.0, "C": 60.0}
    ranking = rank(
        table, "dice", label="Dice score", lower_is_better=False, published=published, bootstrap=100, questions=questions
    )
    write(ranking, tmp_path / "deep" / "s", title="Study", unit="%", extra=[Section("Fairness", "More text.")])
    folder = tmp_path / "deep" / "s"
    figures = ["differences.pdf", "differences.png", "means.pdf", "means.png"]
    texts = ["methods.md", "planned.csv", "ranking.csv", "ranking.html", "ranking.md", "ranking.tex"]
    assert sorted(p.name for p in folder.iterdir()) == figures + texts
    text = (folder / "ranking.md").read_text(encoding="utf-8")
    assert text.rstrip().endswith(ranking.verdict)
    assert "a\\|b" in text
    assert text.index("| Is a\\|b <i> better than B? | Yes | +") < text.index("## Ranking")
    assert "absent" not in text
    planned = pd.read_csv(folder / "planned.csv")
    assert planned["p"].to_list() == pytest.approx(planned["p_holm"])
    pair = ranking.pairs.set_index(["first", "second"]).loc[("a|b <i>", "B")]
    assert planned["gain"][0] == pytest.approx(pair["difference"], rel=1e-5)
    assert r"a\textbar{}b \textless{}i\textgreater{} & " in (folder / "ranking.tex").read_text(encoding="utf-8")
    assert r"Dice score (\%)" in (folder / "ranking.tex").read_text(encoding="utf-8")
    methods = (folder / "methods.md").read_text(encoding="utf-8")
    assert "over the 1 comparisons" not in methods
    assert "Holm's method (1979)" in methods
    assert f"on {ranking.patients} patients (20 cases)" in methods
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


def test_the_ceiling_is_the_last_row_of_every_table(tmp_path: Path) -> None:
    table = tidy(draw(np.random.default_rng(0), shift=4))
    table = pd.concat([table, table[table["config"] == "A"].assign(config="oracle", value=99.0)], ignore_index=True)
    for ceiling in (None, "oracle"):
        chosen = table if ceiling else table[table["config"] != "oracle"]
        ranking = rank(chosen, "dice", lower_is_better=False, bootstrap=100, floor="D", ceiling=ceiling)
        write(ranking, tmp_path, title="Study", unit="%")
        saved = pd.read_csv(tmp_path / "ranking.csv", dtype={"rank": "Int64"})
        text, tex, page = ((tmp_path / f"ranking.{kind}").read_text(encoding="utf-8") for kind in ("md", "tex", "html"))
        for written in (text, tex, page):
            assert ("oracle" in written) == bool(ceiling)
        assert ("covered: the share of the way from D, a trivial method, to oracle" in text) == bool(ceiling)
        if ceiling:
            assert saved["config"].to_list()[-1] == "oracle"
            assert saved["rank"].isna().to_list() == [False] * 4 + [True]
            assert "| oracle | 99.0" in text
            assert r"{}oracle & 99.0 &  &  &  \\" in tex


@pytest.mark.parametrize(("configs", "seeds", "patients"), [(1, 1, 8), (2, 1, 1), (20, 1, 60), (2, 2, 8)])
@pytest.mark.filterwarnings("error")
def test_any_size_is_plotted(tmp_path: Path, configs: int, seeds: int, patients: int) -> None:
    scores = draw(np.random.default_rng(1), configs=configs, seeds=seeds, patients=patients)
    scores = scores if seeds == 1 else np.ones_like(scores)
    ranking = rank(tidy(scores), "dice", lower_is_better=True, bootstrap=20)
    write(ranking, tmp_path, title="Study", unit="")
    assert ranking.verdict in (tmp_path / "ranking.md").read_text(encoding="utf-8")
