"""`posthoc-inn compare`: models on groups of images, from the command line to the figures."""

from __future__ import annotations

import json

import pytest

JUDGE = """
import torch
from torch import nn

class Red(nn.Module):
    "Whether a picture is more red than green: a judge whose word is known."
    def forward(self, x):
        assert x.shape[1] == 3 and 0 <= float(x.min()) and float(x.max()) <= 1
        difference = x[:, 0].mean((1, 2)) - x[:, 1].mean((1, 2))
        return torch.stack([-difference, difference], 1)

def vector():
    return nn.Flatten(0)
"""


@pytest.fixture
def given(finished, pictures, tmp_path, monkeypatch):
    (tmp_path / "judge_of_a_test.py").write_text(JUDGE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    groups = ("--group", f"noughts={pictures / 'nought'}", "--group", f"ones={pictures / 'one'}")
    return ("compare", "--bundle", finished, *groups, "--images", "6", "-n", "3")


def test_two_models_are_compared_on_two_groups(given, finished, ask):
    answer = ask(*given, "--bundle", finished, "--judge", "judge_of_a_test:Red", "--json")
    assert answer.code == 0, answer.err
    found = answer.json["analyses"][0]["figures"] if "analyses" in answer.json else answer.json
    text = json.dumps(found)
    name = finished.parent.name if finished.name == "bundle" else finished.name
    for part in (f"{name} / noughts", f"{name} / ones", f"{name} 2 / noughts", f"{name} 2 / ones"):
        assert f'"{part}"' in text
    again = ask(*given, "--judge", "judge_of_a_test:Red", "--out", "again")
    assert again.code == 0
    assert again.out.count("of samples keep the image's class") == 2
    assert "6 images)" in again.out


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ((), "--judge is missing"),
        (("--judge", "small_cnn"), "needs --judge-weights"),
        (("--judge", "small_cnn", "--judge-weights", "none"), "a judge with random weights judges nothing"),
        (("--judge", "judge_of_a_test:Gone"), "--judge judge_of_a_test:Gone: judge_of_a_test has no 'Gone'"),
        (("--judge", "judge_of_a_test:Red", "--group", "none"), "--group takes NAME=FOLDER, got 'none'"),
        (("--judge", "judge_of_a_test:Red", "--group", "x=nowhere"), "there is no folder nowhere"),
        (("--judge", "judge_of_a_test:Red", "--model", "a:b", "--model", "a:b"), "once for each of the 1, got 2"),
        (("--judge", "judge_of_a_test:vector"), "one row of class scores per image"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_written(given, ask, tmp_path, more, told):
    answer = ask(*given, *more)
    assert answer.code in (1, 2)
    assert told in answer.err
    assert "Traceback" not in answer.err
    assert not (tmp_path / "comparison").exists()
