"""Names on the terminal: no markup is read in them, none steers it; and a run whose class is called as nobody would."""

from __future__ import annotations

import io
import json
import shutil

import pytest
from hostile_names import HOSTILE_NAMES
from rich.console import Console

from posthoc_inn.analysis.samples import Samples
from posthoc_inn.cli.echo import echo, echo_json
from posthoc_inn.cli.terminal import LineReporter, print_findings, print_lines
from posthoc_inn.names import visible
from posthoc_inn.progress import RichReporter
from posthoc_inn.report.findings.judging import Finding

hostile = pytest.mark.parametrize("name", HOSTILE_NAMES.values(), ids=HOSTILE_NAMES.keys())


def is_harmless(text: str) -> bool:
    text.encode()
    return not {c for c in text if ord(c) < 32 and c != "\n"} and "\x7f" not in text and "\u202e" not in text


@hostile
def test_tables_lines_and_notes_show_any_name(name, capsys):
    stream = io.StringIO()
    console = Console(file=stream, width=110, highlight=False)
    print_lines(console, [name])
    assert stream.getvalue() == visible(name) + "\n"
    print_findings(console, [Finding(name, name, name, name, "good", name)])
    with RichReporter(2, console) as reporter:
        reporter.note(name)
        reporter.stage(name, 3)
    lines = LineReporter(2)
    lines.note(name)
    lines.stage(name, 3)
    echo(name)
    captured = capsys.readouterr()
    assert is_harmless(stream.getvalue() + captured.out + captured.err)


@pytest.mark.parametrize("name", [HOSTILE_NAMES["markup"], HOSTILE_NAMES["escape sequence"]])
def test_the_bar_of_a_stage_reads_no_markup(name):
    stream = io.StringIO()
    with RichReporter(2, Console(file=stream, width=110, force_terminal=True, no_color=True)) as reporter:
        reporter.stage(name, 3)
        reporter.advance(1)
    assert visible(name) in stream.getvalue()


@hostile
def test_json_on_the_terminal_is_json(name, capsys):
    echo_json({name: [name]})
    told = capsys.readouterr().out
    assert is_harmless(told)
    assert list(json.loads(told)) in ([name], ["caf\\udce9"])


@pytest.mark.parametrize("name", [HOSTILE_NAMES[k] for k in ("escape sequence", "undecodable", "long")])
@pytest.mark.parametrize("command", [["{}"], ["fit", "--data", "./{}"], ["fit", "--{}"], ["plugins", "--names", "{}"]])
def test_a_wrong_name_is_told_without_harm(name, command, ask):
    answer = ask(*(part.format(name) for part in command))
    assert answer.code in (1, 2)
    assert is_harmless(answer.out + answer.err)
    assert len(answer.err) < 7000


def test_a_class_of_any_name_comes_through_a_whole_run(pictures, quick, ask, tmp_path, monkeypatch):
    names = ("$x^$", "[red]a\x1b[31m\n日本")
    for old, new in zip(("nought", "one"), names, strict=True):
        shutil.copytree(pictures / old, tmp_path / "pictures" / new)
    drawn = []
    original = Samples.figure
    monkeypatch.setattr(Samples, "figure", lambda self: drawn.append(self.predictions) or original(self))
    out = tmp_path / "run"
    answer = ask("fit", *quick, "--data", tmp_path / "pictures", "--out", out, "--steps", 2, "--autoencoder-steps", 2)
    assert answer.code == 0, answer.err
    assert is_harmless(answer.out + answer.err)
    assert set(drawn[0]) <= set(names)
    assert (out / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert "</html>" in (out / "report.html").read_text(encoding="utf-8")
    origin = json.loads((out / "bundle" / "bundle.json").read_text(encoding="utf-8"))["origin"]
    assert set(origin["classes"]) == set(names)
    grid = tmp_path / "grid.png"
    answer = ask("sample", "--bundle", out, "--images", tmp_path / "pictures" / "$x^$" / "00.png", "--out", grid)
    assert answer.code == 0, answer.err
    assert grid.exists()
