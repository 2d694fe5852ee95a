"""Progress of a fit: what is told, and a rich bar that shows it on a terminal and vanishes elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from posthoc_inn.names import visible


class Reporter:
    """Receives what a fit tells; this one ignores all of it.

    >>> with Reporter() as reporter:
    ...     reporter.stage("autoencoder", 100)
    ...     reporter.advance(10, {"loss": 1.0})
    """

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def note(self, text: str) -> None:
        """Say something once."""

    def stage(self, name: str, total: int | None) -> None:
        """Begin a stage of `total` steps, or of unknown length."""

    def advance(self, done: int, figures: dict[str, float] | None = None) -> None:
        """Tell how many steps of the stage are done."""


class RichReporter(Reporter):
    """A bar with the stage, the time left and the latest figures, on standard error.

    Args:
        stages: How many stages there will be, so that each can say which one it is.
        console: Where to write; standard error by default.
    """

    def __init__(self, stages: int | None = None, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._stages, self._stage_number = stages, 0
        self._task: TaskID | None = None
        self._progress = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> RichReporter:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(visible(text, keep="\n"), highlight=False, markup=False, soft_wrap=True)

    def stage(self, name: str, total: int | None) -> None:
        """Begin a stage."""
        self._stage_number += 1
        which = f"{self._stage_number}/{self._stages} " if self._stages else ""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(f"{which}{visible(name)}", total=total, figures="")

    def advance(self, done: int, figures: dict[str, float] | None = None) -> None:
        """Move the bar."""
        if self._task is not None:
            shown = "  ".join(f"{k.replace('_', '-')} {v:.4g}" for k, v in (figures or {}).items())
            self._progress.update(self._task, completed=done, figures=shown)


def make_reporter(progress: bool | None = None, stages: int | None = None) -> Reporter:
    """Return a bar when `progress` is true, or None and standard error is a terminal; else a silent reporter."""
    if progress is None:
        progress = sys.stderr.isatty()
    return RichReporter(stages) if progress else Reporter()
