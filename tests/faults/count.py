"""Counts what the project was tried with, and how much of it went well: `python tests/faults/count.py [--write]`.

Kills before every file operation of a fit, disks that are full, broken bundles, random command lines. About twenty
minutes. With --write the table goes into SECURITY.md.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(p) for p in (HERE, HERE.parent, HERE.parent / "cli", HERE.parent / "bundle")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
import torch  # noqa: E402
from bundle_helpers import make_bundle  # noqa: E402
from children import in_child  # noqa: E402
from cli_helpers import make_quick  # noqa: E402
from commands import command_lines, prepare, problem  # noqa: E402
from disks import full_disks  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from kills import kills  # noqa: E402
from setup_faults import SIZES, quick_options  # noqa: E402
from test_fuzz import fuzz  # noqa: E402

from posthoc_inn.bundle import save_bundle  # noqa: E402
from posthoc_inn.cli.main import main as command_line  # noqa: E402

BEGIN, END = "<!-- counts: begin -->", "<!-- counts: end -->"
Row = tuple[str, int, int]


def told(what: str, problems: list[str]) -> Row:
    """Print each problem, and return the row of the table."""
    for text in problems:
        if text:
            print(f"  {what}: {text[:300]} ... {text[-300:]}", file=sys.stderr)
    return what, sum(not text for text in problems), len(problems)


def count_kills(directory: Path, every: int) -> Row:
    (directory / "pictures").mkdir(parents=True)
    options = quick_options(directory / "pictures")
    found = [what for _, what in kills(options, directory, every=every)]
    return told("a fit killed (-9) before one of its file operations, resumed to the same figures", found)


def count_disks(directory: Path, every: int) -> Row:
    (directory / "pictures").mkdir(parents=True)
    options = quick_options(directory / "pictures")
    try:
        found = [what for _, what in full_disks(options, directory, SIZES)]
    except OSError as error:
        print(f"  no disk can be mounted here: {error}", file=sys.stderr)
        found = []
    return told("a fit on a full disk: one line, exit code 1, resumed to the same figures", found)


def count_bundles(directory: Path, every: int) -> Row:
    run = save_bundle(make_bundle(), directory / "bundle")
    rounds, found = max(100, 6000 // every), []
    try:
        fuzz(run, seed=100, rounds=rounds)
        found = [""] * rounds
    except BaseException as error:
        found = [repr(error)]
    return told("a broken bundle: loaded as it was, or refused in one line", found)


def count_command_lines(directory: Path, every: int) -> Row:
    directory.mkdir()
    prepare(directory)
    found: list[str] = []

    @given(line=command_lines())
    @settings(
        max_examples=max(20, 2000 // every), deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    def run_all(line: list[str]) -> None:
        def run() -> None:
            os.chdir(directory)
            command_line(line)

        ended = in_child(run, seconds=60)
        what = problem(ended.code, ended.err)
        found.append(f"{line}: {what}" if what else "")

    run_all()
    return told("a random command line: exit code 0, 1 or 2, no traceback, no endless line", found)


COUNTS: tuple[Callable[[Path, int], Row], ...] = (count_kills, count_disks, count_bundles, count_command_lines)


def main() -> None:
    """Count, print, and write where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="do one in so many only")
    parser.add_argument("--write", action="store_true", help="put the table into SECURITY.md")
    given_ = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as place:
        make_quick(patch)
        for count in COUNTS:
            started = time.perf_counter()
            rows.append(count(Path(place) / count.__name__, given_.every))
            print(f"{rows[-1]}  {time.perf_counter() - started:.0f} s", file=sys.stderr)
    lines = ["| What was tried | Went well | Of |", "| --- | ---: | ---: |"]
    lines += [f"| {what} | {good:,} | {total:,} |" for what, good, total in rows]
    command = " ".join(["python tests/faults/count.py", *(["--every", str(given_.every)] if given_.every > 1 else [])])
    day = datetime.datetime.now(tz=datetime.UTC).date()
    text = f"Counted on {day} with `{command}`:\n\n" + "\n".join(lines)
    print(text)
    if given_.write:
        file = ROOT / "SECURITY.md"
        old = file.read_text()
        assert BEGIN in old
        new = re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{text}\n{END}", old, flags=re.DOTALL)
        file.write_text(new)
    sys.exit(any(good < total for _, good, total in rows))


if __name__ == "__main__":
    main()
