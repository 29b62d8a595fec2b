"""The page about all studies: it has every ranking with its verdict and is self-contained."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from quintet import ranking
from quintet.comparison import publish
from quintet.errors import InputError
from quintet.params import StudyName
from quintet.report import write_report
from quintet.runs import Record
from tests.ranking.tables import tidy


@pytest.fixture
def ranked(tmp_path, monkeypatch) -> dict[StudyName, ranking.Ranking]:
    """Rankings and selected runs, as the stages leave them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    found = {}
    for number, study in enumerate(StudyName):
        values = np.random.default_rng(number).normal(size=(3, 2, 12)) + np.arange(3)[:, None, None]
        questions = [ranking.is_better("B", "A")] if study is not StudyName.ct else []
        table = tidy(values)
        oracle = table[table["config"] == "A"].assign(config="oracle", value=9.0)
        found[study] = ranking.rank(
            pd.concat([table, oracle]),
            "dice",
            lower_is_better=False,
            bootstrap=100,
            questions=questions,
            floor="A",
            ceiling="oracle",
        )
        out, report = Path("runs") / study.value / "rank", Path("reports") / study.value / "ranking"
        publish(study.value, found[study], {}, out, report, title=f"Title of {study}", unit="points", sections=lambda _: [])
        selected = Path("runs") / study.value / "selected"
        selected.mkdir(parents=True)
        Record(study.value, f"{study}_train", "selected", 0, {"rate": 0.5}, {"arrays": "d41d8"}).save(selected)
        (report.parent / "selected.json").write_text(json.dumps({"score": 0.25, "by": {"site": 0.125}}))
    return found


class Addresses(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_has_every_ranking_and_is_self_contained(ranked, make_params):
    lead = write_report(make_params({"ct.raw": "/data/ct"}), Path("runs"), Path("reports"), Path("reports/index.html"))
    assert lead == f"{len(StudyName)} studies, {3 * len(StudyName)} ranked configurations; own data: ct."
    page = Path("reports/index.html").read_text()
    for study, table in ranked.items():
        assert f"Title of {study}" in page
        assert table.verdict in page
        for row in table.answers.itertuples():
            assert f"<td>{row.question}</td><td>{row.verdict}</td>" in page
        assert len(re.findall(rf'<a href="#(part-\d+)">Title of {study}</a>', page)) == 1
        assert f'href="{study}/ranking/ranking.html"' in page
    assert page.count("<td>oracle</td>") == len(StudyName)
    assert "NA&gt;" not in page  # the oracle has no rank
    assert page.count("0.1250") == len(StudyName)  # by.site, whose name is flattened
    parsed = Addresses()
    parsed.feed(page)
    assert parsed.open == []
    assert len(parsed.found) >= 10
    assert all(re.match(r"data:|#part-\d+$|\w+/[\w/]+\.html$", address) for address in parsed.found)


@pytest.mark.parametrize(
    ("reports", "page", "link"),
    [
        ("{here}/reports", "reports/index.html", "ct/ranking/ranking.html"),
        ("reports", "{here}/reports/index.html", "ct/ranking/ranking.html"),
        ("reports", "pages/of/index.html", "../../reports/ct/ranking/ranking.html"),
        ("{here}/reports", "index.html", "reports/ct/ranking/ranking.html"),
    ],
)
def test_its_links_hold_wherever_it_is(ranked, make_params, tmp_path, reports, page, link):
    page = Path(page.format(here=tmp_path))
    page.parent.mkdir(parents=True, exist_ok=True)
    write_report(make_params(), Path("runs"), Path(reports.format(here=tmp_path)), page)
    assert f'href="{link}"' in page.read_text(encoding="utf-8")
    assert (page.parent / link).is_file()


def test_counts_the_configurations_that_are_not_significantly_different_from_the_first(ranked, make_params):
    write_report(make_params(), Path("runs"), Path("reports"), Path("index.html"))
    groups = list(ranked[StudyName.ct].table["group"])
    tied = sum(bool(set(groups[0]) & set(group)) for group in groups[1:])
    assert f">{tied} of 2 others</td>" in Path("index.html").read_text()


def test_a_missing_ranking_is_named(ranked, make_params):
    Path("reports/ct/ranking/ranking.csv").unlink()
    with pytest.raises(InputError, match="ct_rank"):
        write_report(make_params(), Path("runs"), Path("reports"), Path("index.html"))
    assert not Path("index.html").exists()
