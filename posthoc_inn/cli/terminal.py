"""What the commands print: consoles, the progress of a fit, and tables in plain words."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from posthoc_inn.names import visible
from posthoc_inn.progress import Reporter, RichReporter

if TYPE_CHECKING:
    from posthoc_inn.report.findings.judging import Finding

MARKS = {"good": ("✓", "green"), "fair": ("~", "yellow"), "poor": ("✗", "red"), "info": ("·", "dim")}
"""Status -> (sign, colour): the sign alone tells it where there is no colour."""


def out() -> Console:
    """Return a console on standard output; a width of 110 where it is no terminal, so that tables stay readable."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 110, highlight=False, soft_wrap=False)


class LineReporter(Reporter):
    """Tells each stage in a line: for logs, where a bar would be noise.

    Args:
        stages: How many there will be.
    """

    def __init__(self, stages: int) -> None:
        self._stages, self._number, self._started = stages, 0, time.perf_counter()

    def note(self, text: str) -> None:
        """Print a line."""
        print(visible(text, keep="\n"), file=sys.stderr, flush=True)

    def stage(self, name: str, total: int | None) -> None:
        """Print the stage, with the seconds since the start."""
        self._number += 1
        seconds = time.perf_counter() - self._started
        length = "" if total is None else f" ({total:,})"
        self.note(f"[{seconds:6.0f} s] {self._number}/{self._stages} {name}{length}")


def choose_reporter(stages: int, *, quiet: bool) -> Reporter:
    """Return nothing but silence, a bar on a terminal, or a line a stage elsewhere."""
    if quiet:
        return Reporter()
    return RichReporter(stages) if sys.stderr.isatty() else LineReporter(stages)


def print_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Print the measured figures with what each means."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(max_width=34)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(ratio=1)
    group = ""
    for finding in findings:
        if finding.group != group:
            group = finding.group
            table.add_row("", cell(group, "bold"), "", "")
        sign, style = MARKS[finding.status]
        table.add_row(Text(sign, style=style), cell(finding.label), cell(finding.value, style), cell(finding.meaning))
    console.print(table)


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """Print lines as they are, but for what would steer the terminal."""
    for line in lines:
        console.print(cell(line), soft_wrap=True)


def cell(text: str, style: str = "") -> Text:
    """Return a stranger's text for a table: no markup is read in it, and control characters are visible."""
    return Text(visible(text), style=style)
