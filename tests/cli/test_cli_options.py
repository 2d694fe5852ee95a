from __future__ import annotations

import click
import pytest

from posthoc_inn.cli.fit.command import command as fit_command
from posthoc_inn.cli.options import Floats, KeyValue, Shape, device_option
from posthoc_inn.cli.sweep import command as sweep_command


@pytest.mark.parametrize("text", ["3x224", "0x28x28", "axb", "", "1x2x3x4"])
def test_a_shape_that_is_none_is_refused(text):
    with pytest.raises(click.BadParameter, match="is not a shape such as 3x224x224"):
        Shape().convert(text, None, None)


def test_numbers_that_are_none_are_refused():
    with pytest.raises(click.BadParameter, match="separated by commas"):
        Floats().convert("0.5,half", None, None)


@pytest.mark.parametrize(
    ("text", "value"), [("a=1", 1), ("a=0.5", 0.5), ("a=False", False), ("a=b=c", "b=c"), ("a=", "")]
)
def test_the_value_of_an_option_is_read_as_what_it_looks_like(text, value):
    assert KeyValue().convert(text, None, None) == ("a", value)


@pytest.mark.parametrize("text", ["a", "=1"])
def test_an_option_without_key_or_value_is_refused(text):
    with pytest.raises(click.BadParameter, match="is not KEY=VALUE"):
        KeyValue().convert(text, None, None)


@pytest.mark.parametrize("command", [fit_command, sweep_command], ids=["fit", "sweep"])
def test_the_kind_of_the_prediction_is_an_option(command):
    parse = lambda *words: command.make_context("posthoc-inn", list(words)).params["prediction_kind"]  # noqa: E731
    assert parse() == "auto"
    assert parse("--prediction-kind", "embedding") == "embedding"
    with pytest.raises(click.BadParameter, match="'class' is not one of 'auto', 'classes', 'multilabel'"):
        parse("--prediction-kind", "class")


@pytest.mark.parametrize(
    ("name", "is_good"), [("auto", True), ("cuda:1", True), ("mps", True), ("gpu", False), ("cuda:", False)]
)
def test_devices_are_known_by_name(name, is_good):
    assert (device_option(name) is None) == is_good
