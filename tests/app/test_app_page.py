"""The page as it is served, asked without a browser: what it loads, what it takes, what it keeps to itself."""

from __future__ import annotations

import re

import pytest

from posthoc_inn.app.page import WAITING, build
from posthoc_inn.app.serving import application
from posthoc_inn.app.views.frame import answering
from posthoc_inn.app.words import PARTS
from posthoc_inn.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore")  # of gradio's own libraries


@pytest.fixture(scope="module")
def client(opened, collected):
    pytest.importorskip("gradio", reason="pip install posthoc-inn[app]")
    from starlette.testclient import TestClient

    with TestClient(application(opened)) as found:
        yield found


def test_nothing_of_the_page_is_loaded_from_elsewhere(client):
    page = client.get("/").text
    loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=[\"']?([^\"' >]+)", page)
    assert loaded
    assert [url for url in loaded if re.match(r"(https?:)?//", url)] == []
    assert "googleapis" not in page


def test_every_part_is_there_and_nothing_can_be_called_by_name(client):
    config = client.get("/config").json()
    tabs = [c["props"]["label"] for c in config["components"] if c["type"] == "tabitem"]
    assert tabs == [words.name for words in PARTS]
    assert {d["api_visibility"] for d in config["dependencies"]} == {"private"}
    assert not config.get("analytics_enabled")
    assert client.get("/docs").status_code == 404
    assert client.get("/openapi.json").status_code == 404


def test_a_file_that_is_too_large_is_refused_before_it_is_kept(client):
    answer = client.post("/gradio_api/upload", files={"files": ("large.png", b"\0" * 10_100_000)})
    assert answer.status_code == 413


def test_files_of_this_machine_are_not_given_away(client, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    for url in (f"/gradio_api/file={secret}", "/gradio_api/file=/etc/passwd", "/gradio_api/file=conftest.py"):
        assert client.get(url).status_code in (403, 404)


def test_the_queue_has_a_limit_and_one_answer_is_computed_at_a_time(opened, collected):
    pytest.importorskip("gradio", reason="pip install posthoc-inn[app]")
    page = build(opened)
    assert page.max_threads is not None
    assert page._queue.max_size == WAITING
    heavy = [fn for fn in page.fns.values() if fn.concurrency_id == "model"]
    assert len(heavy) > 8
    assert {fn.concurrency_limit for fn in heavy} == {1}


# ---- what a function of a part answers when it cannot


def test_a_problem_becomes_a_message_and_the_other_outputs_stay():
    def broken(name):
        raise DataError(f"{name} is <broken>.")

    first, *others = answering(broken, 3)("a.png")
    assert 'role="alert">a.png is &lt;broken&gt;.' in first
    assert others == [{"__type__": "update"}] * 2


def test_a_defect_becomes_a_message_too(monkeypatch):
    monkeypatch.delenv("POSTHOC_INN_DEBUG", raising=False)
    shown = answering(lambda: 1 / 0, 1)()
    assert "ZeroDivisionError: division by zero (this is a defect of posthoc-inn" in shown
