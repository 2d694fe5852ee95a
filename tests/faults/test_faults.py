"""Kills, full disks and command lines, a few of each; `count.py` does many, and prints how many went well."""

from __future__ import annotations

import os

import pytest
from children import in_child
from commands import command_lines, prepare, problem
from disks import full_disks, small_disk
from hypothesis import HealthCheck, given, settings
from kills import kills
from setup_faults import SIZES

from posthoc_inn.cli.main import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    # Forking with the threads of torch's pool asleep: children run on one thread.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


def test_a_fit_killed_before_a_file_operation_is_resumed_to_the_same_result(options, tmp_path):
    found = list(kills(options, tmp_path, every=5))
    assert len(found) > 5
    assert not [(number, what) for number, what in found if what]


def test_a_fit_on_a_full_disk_ends_in_a_line_and_goes_on(options, tmp_path):
    try:
        with small_disk(tmp_path / "try", 1 << 20):
            pass
    except OSError as error:
        pytest.skip(f"no disk can be mounted here: {error}")
    found = list(full_disks(options, tmp_path, SIZES))
    assert [what for _, what in found] == [""] * len(SIZES)


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory):
    directory = tmp_path_factory.mktemp("surroundings")
    prepare(directory)
    return directory


@given(line=command_lines())
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), print_blob=False)
def test_no_command_line_ends_in_a_traceback(surroundings, line):
    def run():
        os.chdir(surroundings)
        main(line)

    ended = in_child(run, seconds=60)
    assert not problem(ended.code, ended.err), (line, ended.err[-800:])
