"""The examples run, a few steps of everything, where their data is at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
REAL = os.environ.get("POSTHOC_INN_DATA_DIR", "")
MNIST = next((p for p in (Path(REAL, "mnist"), Path(REAL)) if REAL and any(p.rglob("train-images*"))), None)

needs_mnist = pytest.mark.skipif(MNIST is None, reason="POSTHOC_INN_DATA_DIR names no directory with MNIST")


def run(script, *arguments):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *map(str, arguments), "--threads", "1"],
        capture_output=True, text=True, timeout=900, cwd=EXAMPLES, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@needs_mnist
def test_the_training_sweep_runs_and_goes_on(tmp_path):
    arguments = ("--data-dir", MNIST, "--out", tmp_path, "--smoke", "--draws", "1")
    first = run("training_sweep.py", *arguments)
    assert "correlation of digit share with accuracy" in first
    for name in ("figure4.png", "table.md", "training_sweep.json", "analysis.html", "samples-10.png"):
        assert (tmp_path / name).exists(), name
    second = run("training_sweep.py", *arguments)
    assert first.splitlines()[:8] == second.splitlines()[:8]


@pytest.mark.parametrize("script", sorted(p.name for p in EXAMPLES.glob("*.py")))
def test_every_example_compiles_and_names_no_path_of_a_machine(script):
    text = (EXAMPLES / script).read_text()
    compile(text, script, "exec")
    assert "/work/" not in text
    assert "/tmp/" not in text
