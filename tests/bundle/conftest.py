from __future__ import annotations

import shutil

import pytest
from bundle_helpers import make_bundle

from posthoc_inn.bundle import save_bundle


@pytest.fixture(scope="session")
def saved_once(tmp_path_factory):
    return save_bundle(make_bundle(), tmp_path_factory.mktemp("bundle") / "run")


@pytest.fixture
def saved(saved_once, tmp_path):
    """A bundle of one's own, to be broken."""
    return shutil.copytree(saved_once, tmp_path / "run")
