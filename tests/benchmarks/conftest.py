"""The scripts in benchmarks/ import each other as top-level modules, as Python lets scripts in one directory do."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """Return a function that imports a benchmark script by name."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module
