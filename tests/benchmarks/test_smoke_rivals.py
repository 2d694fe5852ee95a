"""The table of rivals is made from end to end on tiny sizes."""

from __future__ import annotations

import torch


def test_the_rivals_print_their_table(load, capsys):
    threads = torch.get_num_threads()
    try:
        load("rivals").main(["--smoke", "--threads", "1"])
    finally:
        torch.set_num_threads(threads)
    out = capsys.readouterr().out
    for name in ("\nt  ", "t, refined by 2 steps", "nearest training images, decoded", "linear t", "random starts"):
        assert name in out
    assert "nan" not in out
