"""The script that times the autoencoder's step runs, and prints what it promises."""

from __future__ import annotations

import os


def test_the_autoencoder_step_is_timed_beside_the_plain_one(load, capsys):
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    load("autoencoder_step").main(["--smoke", "--threads", "1"])
    out = capsys.readouterr().out
    assert "1 threads" in out
    rows = {line.split("  ")[0]: line for line in out.splitlines()}
    assert {"posthoc_inn", "plain PyTorch, fp32"} <= set(rows)
    assert rows["plain PyTorch, fp32"].split()[-2] == "1.00"
    if allowed is not None:
        assert os.sched_getaffinity(0) == allowed
