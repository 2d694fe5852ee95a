"""The comparison with the linear t runs from end to end on tiny sizes."""

from __future__ import annotations

import torch


def test_the_linear_baseline_prints_its_table(load, capsys):
    threads = torch.get_num_threads()
    try:
        load("linear_baseline").main(["--smoke"])
    finally:
        torch.set_num_threads(threads)
    out = capsys.readouterr().out
    assert out.count("linear, then t as in quick") == 3
    assert out.count("the truth") == 2
    assert "nan" not in out
