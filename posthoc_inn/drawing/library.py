"""matplotlib, imported whatever backend the surroundings ask for."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

BACKEND = "MPLBACKEND"
"""Environment variable that names a backend; a notebook's own is unknown to processes that it starts."""


@contextmanager
def any_backend() -> Iterator[None]:
    """Hide the wanted backend from a matplotlib that is imported inside the block, and put the variable back.

    Figures here have canvases of their own, so that no backend is needed: one that cannot be imported must not stop a
    fit. A matplotlib that was imported before is left as it is.
    """
    wanted = None if "matplotlib" in sys.modules else os.environ.pop(BACKEND, None)
    try:
        yield
    finally:
        if wanted is not None:
            os.environ[BACKEND] = wanted


def matplotlib(module: str) -> Any:
    """Return a module of matplotlib, such as "figure"."""
    with any_backend():
        return importlib.import_module(f"matplotlib.{module}")
