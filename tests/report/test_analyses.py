"""The page about analyses, and the JSON beside it."""

from __future__ import annotations

import json

import pytest
from jinja2 import UndefinedError
from matplotlib.figure import Figure
from report_helpers import HOSTILE, Reader, samples

from posthoc_inn.errors import DataError
from posthoc_inn.report import figures
from posthoc_inn.report.analyses import MAX_ROWS, AnalysisSection, render_analyses, section_of, write_analyses
from posthoc_inn.report.pages import fill


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(figures.to_data_uri, "__defaults__", (30,))


def page_of(*sections, heading="heading", lead=("lead",), version=""):
    return Reader(render_analyses(heading, lead, sections, version))


PLACES = {
    "heading": {"heading": HOSTILE},
    "lead": {"lead": [HOSTILE]},
    "version": {"version": HOSTILE},
    "title": {"section": AnalysisSection(HOSTILE, figure=Figure())},
    "caption": {"section": AnalysisSection("a", caption=HOSTILE)},
    "problem": {"section": AnalysisSection("a", problem=HOSTILE)},
    "name of a figure": {"section": AnalysisSection("a", {HOSTILE: 1.0})},
    "value": {"section": AnalysisSection("a", {"b": HOSTILE})},
    "name of a part": {"section": AnalysisSection("a", {"b": [{"name": HOSTILE, "c": 1}]})},
    "name of an image": {"section": section_of("a", samples(names=(HOSTILE,) * 3), 0.0)},
    "name of a class": {"section": section_of("a", samples(predictions=(HOSTILE,) * 3), 0.0)},
}


@pytest.mark.parametrize("place", PLACES)
def test_a_hostile_text_stays_text_wherever_it_reaches_the_page(place):
    given = dict(PLACES[place])
    page = page_of(given.pop("section", AnalysisSection("a")), **given)
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.open == []
    assert HOSTILE in page.text


def test_a_section_shows_figure_caption_and_figures():
    page = page_of(AnalysisSection("title", {"share": 0.123456, "parts": [{"name": "b", "x": None}]}, "why", Figure()))
    for part in ("title", "why", "Figures (3)", "0.1235", "parts.b.x", "–"):
        assert part in page.text, part
    assert "img" in page.tags


def test_many_figures_are_cut_short_and_the_page_says_so():
    page = page_of(AnalysisSection("title", {str(k): k for k in range(MAX_ROWS + 7)}))
    assert page.tags.count("tr") == MAX_ROWS
    assert "7 more in analysis.json." in page.text


def test_page_and_figures_are_written_together(tmp_path):
    sections = [AnalysisSection("good", {"a": 1.0}, seconds=0.5), AnalysisSection("bad", problem="Left out: why")]
    html, plain = write_analyses("heading", ["lead"], sections, tmp_path / "deep")
    assert "Left out: why" in html.read_text()
    assert json.loads(plain.read_text()) == {"good": {"a": 1.0, "seconds": 0.5}, "bad": {"problem": "Left out: why"}}


def test_a_page_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"analysis\.html cannot be written: File exists"):
        write_analyses("heading", [], [], tmp_path / "file")


def test_a_value_that_a_template_misses_is_an_error():
    with pytest.raises(UndefinedError, match="'sections' is undefined"):
        fill("analyses.html", title="a", lead=[], papers="", version="", max_rows=1)
