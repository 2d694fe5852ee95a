"""`make docs` builds without a warning, and what it builds asks nothing of the network."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from documents import ROOT

for needed in ("sphinx", "myst_parser", "furo", "sphinx_click"):
    pytest.importorskip(needed, exc_type=ImportError)


@pytest.mark.slow
def test_the_pages_build_without_a_warning_and_load_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert built.returncode == 0, built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        text = page.read_text("utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source|audio|video)\b[^>]*\bsrc=\"([^\"]+)\"", text)
        loaded += re.findall(r"<link\b[^>]*\bhref=\"([^\"]+)\"", text)
        assert not [address for address in loaded if re.match(r"(?:https?:)?//", address)], page.name
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*['\"]?(?:https?:)?//", style.read_text("utf-8")), style.name


def test_make_docs_is_the_build_that_is_tested():
    rule = re.search(r"^docs:.*?(?=^\S)", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE | re.DOTALL)[0]
    assert "-m sphinx -W --keep-going" in rule
    assert '".[docs]"' in rule
