"""Freed memory stays in the process; measured by the page faults of allocating the same tensor again and again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

COUNT = """
import resource, torch
from posthoc_inn.cli.fit.memory import keep_freed_memory
done = keep_freed_memory() if {keep} else None
torch.empty(40_000_000).fill_(1)  # 160 MB, above what glibc ever keeps by itself
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.empty(40_000_000).fill_(1)
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count(keep, **environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))}
    done = subprocess.run(
        [sys.executable, "-c", COUNT.format(keep=keep)], capture_output=True, text=True, check=True,
        env={**kept, **environment},
    )  # fmt: skip
    told, faults = done.stdout.split()
    return told, int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is asked")
def test_large_blocks_are_reused():
    told, faults = count(True)
    if told == "False":
        pytest.skip("this system's C library is not glibc")
    assert faults < 0.5 * count(False)[1]


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_what_the_user_has_settled_is_left(name):
    assert count(True, **{name: "1" if name.startswith("MALLOC") else "glibc.malloc.check=0"})[0] == "False"
