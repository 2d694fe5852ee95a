from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import pytest
import torch
from report_helpers import METRICS, content, samples

from posthoc_inn.errors import DataError
from posthoc_inn.report import figures, render, write_report

HOSTILE = "</title><script>alert(1)</script><img src=x onerror='alert(2)'>\"&"
ALONE = {"meta", "img", "br"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(figures.to_data_uri, "__defaults__", (30,))


class Reader(HTMLParser):
    """Collects tags and attributes, and notices tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ALONE:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.text += data


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


def test_hostile_names_stay_text():
    page = Reader(
        render(
            content(
                title=HOSTILE,
                done=[HOSTILE],
                warnings=[HOSTILE],
                settings={HOSTILE: HOSTILE, "list": [HOSTILE], "map": {HOSTILE: 1}},
                files={HOSTILE: HOSTILE},
                version=HOSTILE,
                samples=samples(names=[HOSTILE] * 3, predictions=[HOSTILE] * 3),
                metrics={
                    **METRICS,
                    "seconds": {HOSTILE: 3.0},
                    "likelihood": {**METRICS["likelihood"], "verdict": HOSTILE, "advice": HOSTILE},
                    "training": {"t": {**METRICS["training"]["t"], "stopped": HOSTILE}},
                },
            )
        )
    )
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.open == []
    assert page.text.count("alert(1)") >= 10


def test_little_measured_still_gives_a_report():
    unclassified = samples(agreement=None, predictions=(), sample_predictions=())
    text = render(content(metrics={}, v=None, warnings=(), settings={}, files={}, samples=unclassified))
    assert "What the layer cannot tell apart" in text
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
    with pytest.raises(DataError, match="The report cannot be written to"):
        write_report(content(), tmp_path / "nowhere" / "a.html")
