"""benchmarks/growth.py runs, from processes to table; its figures are not asserted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "growth.py"


@pytest.mark.slow
def test_growth_prints_a_row_for_each_size():
    done = subprocess.run([sys.executable, str(SCRIPT), "--smoke"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    small, large = (next(line for line in lines if line.split()[:1] == [count]) for count in ("300", "1,200"))
    assert "nothing" in small
    assert "nothing" not in large  # above the budget, rows go to disk
