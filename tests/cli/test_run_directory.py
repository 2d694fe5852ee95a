from __future__ import annotations

import json

import pytest

from posthoc_inn.cli.fit.directory import RunDirectory, resumed_options
from posthoc_inn.errors import ConfigError, DataError


@pytest.fixture
def directory(tmp_path):
    return RunDirectory(tmp_path / "run")


def test_a_run_can_begin_where_nothing_is(directory):
    directory.check_new(overwrite=False)
    directory.begin({"steps": 3})
    assert directory.record()["options"] == {"steps": 3}
    assert not list(directory.path.glob("*.partial"))


def test_an_unfinished_run_says_how_to_go_on(directory):
    directory.begin({})
    with pytest.raises(DataError, match=r"unfinished run .* --resume\. To start anew: --overwrite"):
        directory.check_new(overwrite=False)


def test_a_finished_run_says_how_to_do_it_again(directory):
    directory.begin({}, is_finished=True)
    with pytest.raises(DataError, match=r"finished run .*report\.html\. To do it again, add --overwrite"):
        directory.check_new(overwrite=False)


def test_what_is_not_a_run_is_never_replaced(directory):
    directory.path.mkdir()
    (directory.path / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="is not empty, and not a run"):
        directory.check_new(overwrite=True)
    assert (directory.path / "thesis.tex").exists()


def test_overwriting_removes_what_a_run_wrote_and_nothing_else(directory):
    directory.begin({})
    (directory.path / "checkpoints").mkdir()
    (directory.path / "checkpoints" / "t.safetensors").write_bytes(b"x")
    (directory.path / "notes.txt").write_text("mine")
    directory.check_new(overwrite=True)
    assert directory.record() is not None, "nothing is removed before the new run has been checked"
    directory.clear()
    assert [p.name for p in directory.path.iterdir()] == ["notes.txt"]


def test_a_link_to_elsewhere_is_removed_but_not_followed(directory, tmp_path):
    directory.begin({})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "keep").write_text("me")
    (directory.path / "cache").symlink_to(tmp_path / "elsewhere")
    directory.clear()
    assert (tmp_path / "elsewhere" / "keep").exists()
    assert not (directory.path / "cache").exists()


def test_a_file_is_no_directory_of_a_run(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(DataError, match="is a file; --out takes a directory"):
        RunDirectory(tmp_path / "run").check_new(overwrite=False)


@pytest.mark.parametrize("text", ["{", "[]", '{"options": 3}', "\x00"])
def test_a_damaged_record_says_what_to_do(directory, text):
    directory.path.mkdir()
    (directory.path / "fit.json").write_text(text)
    with pytest.raises(DataError, match=r"fit\.json cannot be read .* --overwrite"):
        directory.record()


def test_a_record_of_another_format_is_refused(directory):
    directory.begin({})
    (directory.path / "fit.json").write_text(json.dumps({"format": 99, "options": {}}))
    with pytest.raises(DataError, match="has format 99"):
        directory.record()


def test_resuming_names_every_option_that_differs(tmp_path):
    record = {"options": {"steps": 5, "seed": 0, "layer": "a"}}
    given = {"steps": 6, "seed": 1, "layer": None}
    with pytest.raises(ConfigError, match=r"--steps \(was 5, now 6\), --seed \(was 0, now 1\)\. Resume it"):
        resumed_options(record, given, {"steps", "seed"}, tmp_path)


def test_resuming_remembers_what_is_not_given(tmp_path):
    record = {"options": {"steps": 5, "layer": "a"}}
    assert resumed_options(record, {"steps": None, "layer": None}, set(), tmp_path) == {"steps": 5, "layer": "a"}
