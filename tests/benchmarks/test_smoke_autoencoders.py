"""The script that compares autoencoders runs in both of its ways."""

from __future__ import annotations


def test_a_vector_is_compared_with_maps_after_equal_seconds(load, capsys):
    load("autoencoders").main(
        ["--smoke", "--seconds", "1", "--batch-size", "8", "--only", "conv 64, width 32", "residual, width 16"]
    )
    lines = capsys.readouterr().out.splitlines()
    assert "28 px" in lines[0]
    assert [line[:34].strip() for line in lines[2:]] == ["conv 64, width 32", "residual, width 16"]
    assert all("error" in line for line in lines[2:])
