"""`posthoc-inn app`: what it opens and what it refuses. The page itself is not served here."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
import sys
import types

import click
import pytest
from PIL import Image

from posthoc_inn.app import page, serving
from posthoc_inn.app.serving import Visitors, is_private, open_socket
from posthoc_inn.cli import app
from posthoc_inn.cli.app import expanded, names_of
from posthoc_inn.errors import ConfigError


@pytest.fixture
def served(monkeypatch):
    """Serve nothing; return what would have been."""
    found = []

    def serve(opened, listening, *, is_kept, started):
        host, port = listening.getsockname()[:2]
        started(f"http://{host}:{port}/")
        found.append((opened, is_kept))
        return not is_kept

    monkeypatch.setattr(page, "gradio", lambda: None)
    monkeypatch.setattr(serving, "serve", serve)
    return found


def test_it_opens_a_run_with_pictures_of_a_folder(ask, finished, pictures, served):
    answer = ask("app", "--bundle", finished, "--data", pictures, "--port", 0, "--no-browser")
    assert answer.code == 0, answer.err
    assert "The page is at http://127.0.0.1:" in answer.out
    assert "The last page was closed: stopped. (--keep goes on.)" in answer.out
    opened, is_kept = served[0]
    assert [layer.name for layer in opened.layers] == ["pool"]
    assert len(opened.examples) == app.EXAMPLES
    assert not is_kept
    predicted = [
        int(layer.pipeline.predict(layer.given(shown)).argmax()) for layer in opened.layers for shown in opened.examples
    ]
    assert len(set(predicted[: len(set(predicted))])) == len(set(predicted)), "one of each predicted class comes first"


def test_without_data_it_says_what_to_pass_and_follows_no_path_of_a_bundle(ask, finished, served):
    answer = ask("app", "--bundle", finished, "--port", 0, "--no-browser", "--keep")
    assert answer.code == 0, answer.err
    assert "No pictures to choose from: pass --data NAME|FOLDER" in answer.err
    assert served[0][0].examples == ()
    assert served[0][1]
    assert answer.out.rstrip().endswith("Stopped.")


def test_an_address_for_others_is_warned_of_and_kept(ask, finished, served):
    answer = ask("app", "--bundle", finished, "--host", "0.0.0.0", "--port", 0, "--no-browser")
    assert answer.code == 0, answer.err
    assert "Warning: whoever reaches this address can use it; there is no password." in answer.err
    assert served[0][1]


def test_the_points_of_a_sweep_come_in_their_order_and_with_names_of_their_own(ask, finished, served, tmp_path):
    for name, position in (("a", 2.0), ("b", 1.0)):
        shutil.copytree(finished / "bundle", tmp_path / "sweep" / name / "bundle")
        (tmp_path / "sweep" / name / "result.json").write_text(json.dumps({"position": position}))
    (tmp_path / "sweep" / "c" / "bundle").mkdir(parents=True)
    answer = ask("app", "--bundle", tmp_path / "sweep", "--bundle", finished, "--port", 0, "--no-browser")
    assert answer.code == 0, answer.err
    assert [layer.name for layer in served[0][0].layers] == ["b: pool", "a: pool", "finished: pool"]
    assert served[0][0].groups == (0, 0, 0), "one model, one autoencoder"


def test_a_bundle_that_does_not_tell_its_model_takes_it_of_another_run(ask, finished, served, tmp_path, monkeypatch):
    from posthoc_inn.cli import bundles

    rebuild = bundles.rebuild

    def forgetful(stored, where, *rest):
        if "sweep" in str(where):
            stored = dataclasses.replace(stored, origin={})
        return rebuild(stored, where, *rest)

    monkeypatch.setattr(bundles, "rebuild", forgetful)
    shutil.copytree(finished / "bundle", tmp_path / "sweep" / "a" / "bundle")
    answer = ask("app", "--bundle", tmp_path / "sweep", "--bundle", finished, "--port", 0, "--no-browser")
    assert answer.code == 0, answer.err
    first, second = served[0][0].layers
    assert first.name == "a: pool"
    assert first.interpreter.model is second.interpreter.model
    answer = ask("app", "--bundle", tmp_path / "sweep", "--port", 0, "--no-browser")
    assert answer.code == 1
    assert "was fitted to a model of your own" in answer.err
    assert "Or open it together with the run that has its model: --bundle RUN --bundle" in answer.err


def test_the_embedded_example_is_made_where_it_is_missing_and_opened_where_it_is_there(
    ask, finished, served, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    from posthoc_inn.cli.fit.command import command as fit

    asked = []

    def main(arguments, **_):
        asked.append(arguments)
        shutil.copytree(finished, app.DEMO)

    monkeypatch.setattr(fit, "main", main)
    answer = ask("app", "--port", 0, "--no-browser")
    assert answer.code == 0, answer.err
    assert f"There is no {app.DEMO} yet: fitting the embedded example first." in answer.err
    assert asked == [[*app.DEMO_FIT, "--out", str(app.DEMO)]]
    assert ask("app", "--port", 0, "--no-browser").code == 0
    assert len(asked) == 1
    shutil.rmtree(app.DEMO / "bundle")
    monkeypatch.setattr(fit, "main", lambda arguments, **_: asked.append(arguments))
    assert ask("app", "--port", 0, "--no-browser").code == 1, "nothing was made"
    assert asked[1] == ["--resume", "--out", str(app.DEMO)], "a fit that was begun is gone on with"


def test_the_options_of_the_embedded_fit_are_the_commands_own():
    from posthoc_inn.cli.fit.command import command as fit

    given, left, _ = fit.make_parser(click.Context(fit)).parse_args(list(app.DEMO_FIT))
    assert given["data"] == "color-digits"
    assert left == []


# ---- refusals


def test_a_missing_extra_is_named_before_anything_long(ask, finished, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(app, "load", lambda *_: pytest.fail("a bundle was loaded first"))
    answer = ask("app", "--bundle", finished)
    assert answer.code == 1
    assert "The page needs gradio, which cannot be imported" in answer.err
    assert "pip install posthoc-inn[app]" in answer.err
    assert "Traceback" not in answer.err


def test_the_library_is_told_to_send_nothing_before_it_is_imported(monkeypatch):
    import os

    for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "")
    monkeypatch.setitem(sys.modules, "gradio", types.ModuleType("gradio"))
    page.gradio()
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_a_port_that_is_taken_is_refused_before_bundles_are_loaded(ask, finished, served, monkeypatch):
    monkeypatch.setattr(app, "load", lambda *_: pytest.fail("a bundle was loaded first"))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        answer = ask("app", "--bundle", finished, "--port", port)
    assert answer.code == 1
    assert f"The page cannot be at 127.0.0.1, port {port} (" in answer.err
    assert "Pass another --port, or --port 0 for any free one." in answer.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--port", "70000"), 2, "70000 is not in the range"),
        (("--port", "http"), 2, "'http' is not a valid integer"),
        (("--host", "no.such.host.invalid"), 1, "--host no.such.host.invalid: there is no such address"),
        (("--device", "toaster"), 1, "--device must be auto, cpu, cuda"),
        (("--model", "a:b", "--model", "c:d"), 1, "--model is given once, for all bundles, or once for each of the 1"),
    ],
)
def test_wrong_options_are_told(ask, finished, served, arguments, code, message):
    answer = ask("app", "--bundle", finished, *arguments)
    assert answer.code == code
    assert message in answer.err


def test_a_bundle_of_another_model_and_no_bundle_are_told(ask, finished, served, tmp_path, monkeypatch):
    (tmp_path / "other.py").write_text(
        "from posthoc_inn.builtin.small_cnn import small_cnn\ndef build():\n    return small_cnn(num_classes=2)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    answer = ask("app", "--bundle", finished, "--model", "other:build", "--port", 0)
    assert answer.code == 1
    assert "fitted to" in answer.err
    answer = ask("app", "--bundle", tmp_path / "nothing", "--port", 0)
    assert answer.code == 1
    assert "nothing" in answer.err
    assert served == []


def test_a_folder_without_a_good_picture_is_told(ask, finished, served, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"broken")
    answer = ask("app", "--bundle", finished, "--data", tmp_path, "--port", 0)
    assert answer.code == 1
    assert "no picture could be read: broken.png is not an image" in answer.err
    Image.new("RGB", (28, 28)).save(tmp_path / "good.png")
    assert ask("app", "--bundle", finished, "--data", tmp_path, "--port", 0, "--no-browser").code == 0
    assert [shown.name for shown in served[0][0].examples] == ["good.png"]


# ---- small parts


def test_two_servers_at_once_get_ports_of_their_own():
    with open_socket("127.0.0.1", None) as first, open_socket("127.0.0.1", None) as second:
        assert first.getsockname()[1] != second.getsockname()[1]


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(ConfigError, match=r"The page cannot be at 192\.0\.2\.1, port 0 "):
        open_socket("192.0.2.1", 0)


def test_visitors_are_gone_when_the_last_one_has_not_come_back():
    now = [0.0]
    visitors = Visitors(grace=10, clock=lambda: now[0])
    assert not visitors.are_gone, "nobody has come yet"
    visitors.come("a")
    visitors.come("b")
    visitors.go("a")
    now[0] = 100.0
    assert not visitors.are_gone
    visitors.go("b")
    now[0] = 109.0
    assert not visitors.are_gone
    visitors.come("c")
    now[0] = 200.0
    assert not visitors.are_gone, "the page was loaded anew"
    visitors.go("c")
    now[0] = 211.0
    assert visitors.are_gone


def test_names_tell_runs_apart_only_where_layers_do_not(tmp_path):
    runs = [(tmp_path / "a", "x"), (tmp_path / "b" / "bundle", "x"), (tmp_path / "c", "y")]
    assert names_of(runs) == ["a: x", "b: x", "y"]


def test_a_directory_that_is_nothing_stays_for_the_error_that_names_it(tmp_path):
    assert expanded((tmp_path / "nothing",)) == [tmp_path / "nothing"]


def test_addresses_of_this_machine_alone_are_known():
    assert all(map(is_private, ("127.0.0.1", "127.1.2.3", "localhost", "::1")))
    assert not any(map(is_private, ("0.0.0.0", "::", "192.168.1.2", "example.org")))
