"""Defect 9 of the papers' public reference code, kept out by name: models cut by hand, shapes of z typed in."""

from __future__ import annotations

import inspect

import pytest
import torch

from posthoc_inn import Interpreter
from posthoc_inn.features import LayerExtractor, list_layers
from posthoc_inn.testing import TINY_MODELS, tiny_model


@pytest.mark.parametrize("name", ["plain", "skip", "inplace", "tokens"])
def test_defect_9_any_layer_is_reached_by_its_name_and_its_shape_is_found(name):
    model, inputs = tiny_model(next(n for n in TINY_MODELS if name in n))
    reached = [layer for layer in list_layers(model, inputs) if layer.shape and layer.calls == 1]
    assert reached
    for layer in reached:
        if layer.output == "tensor":
            extractor = LayerExtractor(model, layer.name)
            assert extractor.probe(inputs).z_shape == layer.shape
            assert tuple(extractor.features(inputs).shape[1:]) == layer.shape


def test_defect_9_nobody_is_asked_for_a_shape_or_an_index():
    names = set(inspect.signature(Interpreter).parameters) | set(inspect.signature(Interpreter.fit).parameters)
    assert not {n for n in names if "shape" in n or "split" in n or "index" in n or "channels" in n}
    assert torch.is_grad_enabled()
