"""Kills a fit before each of its file operations, and resumes it."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from children import in_child, killed_at

from posthoc_inn.cli.main import main


def fit(options: Sequence[str], out: Path, *more: str) -> None:
    main(["fit", *options, "--out", str(out), "--quiet", *more])


def figures(out: Path) -> dict[str, object]:
    """Return what the run measured, times aside."""
    metrics = json.loads((out / "metrics.json").read_text())
    metrics.pop("seconds")
    for history in metrics["training"].values():
        history.pop("seconds")
    return metrics


def kills(options: Sequence[str], directory: Path, *, every: int = 1) -> Iterator[tuple[int, str]]:
    """Yield the number of each operation that a fit was killed before, and "" or what went wrong afterwards.

    Args:
        options: Of the fit.
        directory: Where runs go.
        every: Kill before each so manyth operation only.
    """
    whole = directory / "whole"
    assert in_child(lambda: fit(options, whole)).code == 0
    wanted, number = figures(whole), 0
    while True:
        number += every
        out = directory / "killed"
        shutil.rmtree(out, ignore_errors=True)
        ended = in_child(killed_at(number, out, partial(fit, options, out)))
        if ended.code == 0:
            return
        if ended.code != -signal.SIGKILL:
            yield number, f"it ended with {ended.code} before it was killed: {ended.err[-300:]}"
            continue
        resumed = in_child(partial(fit, options, out, "--resume"))
        problem = ""
        if resumed.code != 0:
            problem = f"resumed, it ended with {resumed.code}: {resumed.err[-300:]}"
        elif figures(out) != wanted:
            problem = "resumed, it measured something else"
        yield number, problem
