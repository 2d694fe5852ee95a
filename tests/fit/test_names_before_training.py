"""Names and labels that cannot work are told of before anything is trained, read or measured."""

from __future__ import annotations

import pytest
import torch
from small_parts import SPEC, TINY, network
from torch import nn

from posthoc_inn import Interpreter
from posthoc_inn.concepts import LabelsOf
from posthoc_inn.errors import ConfigError, DataError
from posthoc_inn.features import LayerExtractor
from posthoc_inn.fit import FitRequest

X = torch.rand(24, 3, 28, 28, generator=torch.Generator().manual_seed(0))
Y = torch.arange(24) % 2


def prepare(data, concepts):
    interpreter = Interpreter(network(), "2", spec=SPEC, preset=TINY)
    return interpreter.prepare(FitRequest.of(data, {"concepts": concepts, "held_out": 0.25}))


@pytest.mark.parametrize(
    ("concepts", "told"),
    [
        ({"": Y}, "a name must not be blank, got ''"),
        ({"n" * 5000: Y}, "a name has up to 200 letters, got 5,000"),
        ({"residual": Y}, "'residual' means something else here"),
        ({0: Y}, "a name must be text, got 0, of the type int"),
    ],
    ids=["blank", "long", "taken", "number"],
)
def test_a_name_that_no_concept_can_have_stops_no_run_at_its_end(concepts, told):
    with pytest.raises(ConfigError, match=told):
        prepare(X, concepts)


@pytest.mark.parametrize("name", ["$x^$", "a\x1b\nb", "../x", "日本"])
def test_any_other_name_is_taken(name):
    assert prepare(X, {name: Y}).parts.concepts.source.names == (name,)


def test_labels_that_are_texts_can_be_concepts():
    texts = [("cat", "dog")[k] for k in Y.tolist()]
    fit = prepare([(x, text) for x, text in zip(X, texts, strict=True)], "labels")
    assert isinstance(fit.parts.concepts.source, LabelsOf)
    assert fit.parts.data.label_names == ("class",)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (X, "the data yields none"),
        ([(x, object()) for x in X], "yields none. Labels left out because they are not one number"),
        ([(k, x, 1) for k, x in enumerate(X)], "yields none. .* none as the label, as 2 others might be it"),
    ],
    ids=["none", "no labels", "unclear"],
)
def test_data_without_labels_is_refused_before_it_is_read(data, told):
    with pytest.raises(DataError, match=told):
        prepare(data, "labels")


def test_labels_under_names_that_no_concept_can_have_are_refused():
    with pytest.raises(ConfigError, match="must not be blank"):
        prepare({"image": X, "label": {"": Y}}, "labels")


def layers():
    inner = nn.Linear(4, 4)
    net = nn.Sequential(nn.Sequential(*(nn.Linear(4, 4) for _ in range(40))), inner, inner)
    return [
        (net, net[0], r"got the module itself, a Sequential: pass layer='0'"),
        (net, net[0][3], r"a Linear: pass layer='0\.3'"),
        (net, inner, r"a Linear: pass layer='1'"),
        (net, net, r"got the model itself: pass layer='output'"),
        (net, nn.ReLU(), r"a ReLU that is no module of this Sequential; list_layers shows the names"),
        (nn.DataParallel(net), net[1], r"a Linear: pass layer='1'"),
        (net, 3, r"got 3, of the type int"),
        (net, torch.zeros(500, 500), r"of the type Tensor"),
        (net, ["0"] * 5000, r"of the type list"),
    ]


@pytest.mark.parametrize(("model", "layer", "told"), layers(), ids=range(9))
def test_what_is_no_name_of_a_layer_is_told_of_in_a_line(model, layer, told):
    with pytest.raises(ConfigError, match=told) as error:
        LayerExtractor(model, layer)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200
