"""Pictures and a fit that takes a second, for processes that are killed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# The helpers of the command line's and of the bundles' tests serve here too.
sys.path[:0] = [str(HERE.parent / "cli"), str(HERE.parent / "bundle")]


@pytest.fixture(autouse=True)
def _small_and_quick(monkeypatch):
    from cli_helpers import make_quick

    make_quick(monkeypatch)


@pytest.fixture(scope="session")
def options(tmp_path_factory) -> tuple[str, ...]:
    """Options of a fit on a folder of pictures."""
    from setup_faults import quick_options

    return quick_options(tmp_path_factory.mktemp("pictures"))
