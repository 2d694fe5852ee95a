from __future__ import annotations

import pytest


def test_layers_are_listed_with_shape_and_cut(ask):
    answer = ask("layers", "--backbone", "small_cnn")
    assert answer.code == 0
    line = next(line for line in answer.out.splitlines() if line.startswith("stage3 "))
    assert line.split()[:5] == ["stage3", "Sequential", "128x4x4", "yes", "1"]


def test_layers_come_as_json(ask):
    told = ask("layers", "--backbone", "torchvision:squeezenet1_0", "--input-size", "64", "--no-cuts", "--json").json
    by_name = {row["name"]: row for row in told["layers"]}
    assert by_name["features.12"]["shape"] == [512, 3, 3]
    assert by_name["features.12"]["is_cut"] is None
    assert told["input_shape"] == [3, 64, 64]


def test_only_the_leaves_on_request(ask):
    names = [row["name"] for row in ask("layers", "--backbone", "small_cnn", "--leaves", "--json").json["layers"]]
    assert "stage3" not in names
    assert "stage3.0.0" in names


@pytest.mark.parametrize("args", [[], ["--backbone", "small_cnn", "--model", "a:b"]])
def test_one_model_has_to_be_named(ask, args):
    answer = ask("layers", *args)
    assert answer.code == 1
    assert "--backbone (a registered network) or --model" in answer.err


def test_an_input_the_model_cannot_take_is_told_in_one_line(ask):
    answer = ask("layers", "--backbone", "small_cnn", "--input-shape", "1x28x28")
    assert answer.code == 1
    assert answer.err.count("\n") == 1
    assert "pass --input-shape CxHxW" in answer.err


def test_a_misspelt_backbone_gets_the_nearest_name(ask):
    answer = ask("layers", "--backbone", "small_cn")
    assert "Did you mean 'small_cnn'" in answer.err
