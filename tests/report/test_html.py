from __future__ import annotations

import base64
import re

import pytest
import torch
from hostile_names import HOSTILE_NAMES
from matplotlib.figure import Figure
from report_helpers import HOSTILE, METRICS, Reader, content, samples

from posthoc_inn.errors import DataError
from posthoc_inn.report import figures, render, write_report

CONCEPT = {
    "name": HOSTILE,
    "first_order": {"value": 0.5, "standard_error": 0.1},
    "total_effect": {"value": 0.6},
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(figures.to_data_uri, "__defaults__", (30,))


def test_the_report_is_well_formed_and_holds_its_parts():
    page = Reader(render(content()))
    assert page.open == []
    for part in (
        "What layer4 of net cannot see",
        "Mind this.",
        "What to conclude",
        "What not to conclude",
        "92.0 ± 0.9 %",
        "97.0 ± 0.3 %",
        "95 % interval 96.0 to 98.0 %",
        "Verdict: converged",
        "2 steps skipped",
        "3 min 44 s",
        "5,000",
    ):
        assert part in page.text, part


def test_the_report_stands_alone():
    text = render(content())
    page = Reader(text)
    assert "script" not in page.tags
    assert "link" not in page.tags
    sources = [value for name, value in page.attributes if name in ("src", "href")]
    assert len(sources) == 6
    assert all(str(source).startswith("data:image/png;base64,") for source in sources)
    assert "http" not in re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+|http-equiv", "", text)
    assert base64.b64decode(str(sources[0]).partition(",")[2]).startswith(b"\x89PNG")


def metrics_with(**changes):
    return {"metrics": {**METRICS, **changes}}


PLACES = {
    "title": {"title": HOSTILE},
    "what was done": {"done": [HOSTILE]},
    "warning": {"warnings": [HOSTILE]},
    "setting": {"settings": {HOSTILE: "a"}},
    "value of a setting": {"settings": {"a": HOSTILE}},
    "list in a setting": {"settings": {"a": [HOSTILE]}},
    "mapping in a setting": {"settings": {"a": {HOSTILE: 1}}},
    "file": {"files": {HOSTILE: "a"}},
    "path": {"files": {"a": HOSTILE}},
    "version": {"version": HOSTILE},
    "heading of a section": {"concepts": [(HOSTILE, Figure(), "a")]},
    "caption of a section": {"concepts": [("a", Figure(), HOSTILE)]},
    "stage": metrics_with(seconds={HOSTILE: 3.0}),
    "verdict": metrics_with(likelihood={**METRICS["likelihood"], "verdict": HOSTILE}),
    "advice": metrics_with(likelihood={**METRICS["likelihood"], "advice": HOSTILE}),
    "end of a training": metrics_with(training={"t": {**METRICS["training"]["t"], "stopped": HOSTILE}}),
    "concept": metrics_with(concepts={"relevance": {"concepts": [CONCEPT]}}),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_hostile_text_stays_text_wherever_it_reaches_the_page(place):
    page = Reader(render(content(**PLACES[place])))
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.open == []
    assert HOSTILE in page.text


def test_any_names_reach_the_page_as_text_that_a_file_can_hold(tmp_path):
    names = list(HOSTILE_NAMES.values())
    relevance = [{**CONCEPT, "name": name} for name in names]
    written = content(
        title="".join(names),
        done=names,
        warnings=names,
        settings={name: name for name in names},
        files={name: name for name in names},
        concepts=[("".join(names[:4]), Figure(), "".join(names))],
        **metrics_with(concepts={"relevance": {"concepts": relevance}}),
    )
    write_report(written, tmp_path / "a.html")
    text = (tmp_path / "a.html").read_bytes().decode("utf-8")
    page = Reader(text)
    assert page.open == []
    assert "script" not in page.tags
    assert not {c for c in text if ord(c) < 32 and c not in "\n\t"}
    for name in (HOSTILE_NAMES[k] for k in ("mathematics", "tag", "template", "markup", "emoji", "path")):
        assert name in page.text
    assert "n" * 1990 in page.text
    assert "n" * 2001 not in page.text


def test_little_measured_still_gives_a_report():
    unclassified = samples(agreement=None, predictions=(), sample_predictions=())
    text = render(content(metrics={}, v=None, warnings=(), settings={}, files={}, samples=unclassified))
    assert "What is nearly the same to the layer" in text
    assert "is no classifier" in text


def test_figures_that_are_missing_do_not_stop_the_report():
    metrics = {
        **METRICS,
        "likelihood": {**METRICS["likelihood"], "noise_floor": 1.0, "held_out_error": None, "v_std": None},
        "explained_by_invariances": {**METRICS["explained_by_invariances"], "interval": None, "standard_error": None},
    }
    assert "97.0 %" in render(content(metrics=metrics))


def test_the_same_content_gives_the_same_file(tmp_path):
    torch.manual_seed(1)
    whole = content()
    write_report(whole, tmp_path / "a.html")
    write_report(whole, tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_a_report_that_cannot_be_written_says_so(tmp_path):
    with pytest.raises(DataError, match=r"a\.html cannot be written: No such file"):
        write_report(content(), tmp_path / "nowhere" / "a.html")
