"""The list of layers: names, shapes, calls, cuts."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from posthoc_inn.errors import LayerNotFoundError
from posthoc_inn.features import LayerExtractor, list_layers, resolve_layer, untouched
from posthoc_inn.testing.models import TINY_MODELS, tiny_model


def listed(name, **options):
    model, inputs = tiny_model(name)
    return {info.name: info for info in list_layers(model, inputs, **options)}


def test_every_module_is_listed_in_order_and_the_models_output_last():
    model, x = tiny_model("skip-whole")
    names = [info.name for info in list_layers(model, x)]
    assert names == [*(n for n, _ in model.named_modules() if n), "output"]


def test_shapes_types_and_kinds():
    found = listed("plain")
    assert (found["features.0"].shape, found["features.0"].type) == ((6, 4, 4), "Conv2d")
    assert (found["output"].shape, found["output"].output) == ((4,), "tensor")
    assert listed("tuple")["split"].output == "tuple[3]"
    assert listed("dict")["split"].output == "dict[maps, pooled, largest]"
    assert "output='maps' (B, 6, 4, 4), output='pooled' (B, 6)" in listed("dict")["split"].note


def test_calls_are_counted_and_the_cuts_among_them_named():
    found = listed("skip-inside")["block1.relu"]
    assert (found.calls, found.is_cut, found.shape) == (2, True, (6, 4, 4))
    assert found.note == "called 2 times: pass call=0 to 1; a cut at call=1"
    assert listed("reused")["shared"].calls == 3


def test_a_skip_connection_is_named_where_it_joins():
    found = listed("skip-inside")
    assert found["block1.conv1"].is_cut is False
    assert "joins in block1 (add)" in found["block1.conv1"].note
    assert found["block1"].is_cut is found["stem"].is_cut is True


def test_layers_that_are_not_called_say_why():
    found = listed("unreached")
    assert (found["aux"].calls, found["aux"].output, found["aux"].is_cut) == (0, "-", None)
    assert found["aux"].note == "not called in this pass"
    found = listed("tokens")
    assert "take for instance 'encoder.layers.1.norm2'" not in found["encoder"].note
    assert "container" in found["encoder.layers"].note
    assert "'encoder.layers.0.self_attn' around it is" in found["encoder.layers.0.self_attn.out_proj"].note


@pytest.mark.parametrize("name", [n for n in TINY_MODELS if n not in ("tuple", "dict", "dataclass", "hoarder")])
def test_every_answer_equals_the_measured_one(name):
    model, inputs = tiny_model(name)
    for info in list_layers(model, inputs):
        if info.calls != 1 or info.output != "tensor":
            continue
        extractor = LayerExtractor(model, info.name)
        others = tuple(t.flip(0) for t in inputs) if isinstance(inputs, tuple) else inputs.flip(0)
        swapped = extractor.resume(inputs, extractor.features(others))
        is_cut = torch.allclose(swapped, extractor.predict(others), atol=1e-6)
        assert info.is_cut is is_cut, info


class Hidden(nn.Module):
    """Routes of the image that autograd does not know."""

    def __init__(self, kind):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.head = nn.Linear(4, 4)
        self.kind = kind

    def forward(self, x):
        h = self.layer(x)
        if self.kind == "detached":
            h = h + x.detach()
        elif self.kind == "mask":
            h = h * (x > 0)
        elif self.kind == "index":
            h = h + nn.functional.one_hot(x.argmax(1), 4)
        elif self.kind == "item":
            h = h * (2.0 if x[0, 0].item() > 0.5 else 1.0)
        elif self.kind == "written":
            kept = torch.empty_like(x)
            kept[:, :2] = x[:, :2]
            h = h + kept
        elif self.kind == "shape only":
            h = h + torch.zeros_like(x) + x.new_ones(4)
        return self.head(h)


@pytest.mark.parametrize(
    ("kind", "is_cut"),
    [("detached", False), ("mask", False), ("index", False), ("item", False), ("written", False), ("shape only", True)],
)
def test_routes_that_carry_no_gradient_are_found_too(kind, is_cut):
    x = torch.tensor([[0.9, -1.0, 0.3, 0.2], [0.1, 1.0, -0.3, 0.4]])
    found = {info.name: info for info in list_layers(Hidden(kind), x)}
    assert found["layer"].is_cut is is_cut
    assert found["head"].is_cut is True
    assert LayerExtractor(Hidden(kind), "layer").probe(x).is_cut is is_cut


def test_a_layer_that_keeps_its_result_to_itself_as_well_is_no_cut():
    class Leaky(nn.Module):
        def forward(self, x):
            self.kept = x * 2
            return self.kept

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Leaky()
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.layer(x) + self.layer.kept)

    model, x = Net(), torch.rand(2, 4)
    with untouched(model):
        found = {info.name: info.is_cut for info in list_layers(model, x)}
    assert found == {"layer": False, "head": True, "output": True}


def test_layers_beside_the_image_say_so():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.constant, self.unused, self.head = nn.Linear(1, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            self.unused(x)
            return self.head(x + self.constant(torch.ones(len(x), 1)))

    found = {info.name: info for info in list_layers(Net(), torch.rand(2, 4))}
    assert (found["constant"].is_cut, found["constant"].note) == (False, "does not depend on the image")
    assert (found["unused"].is_cut, found["unused"].note) == (False, "the model's output does not depend on it")


def test_one_module_under_two_names_is_listed_under_both():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    found = {info.name: info for info in list_layers(model, torch.rand(2, 4))}
    assert found["2"].note.endswith("the same module as '0'")
    assert resolve_layer(model, "2") is resolve_layer(model, "0") is shared


def test_without_cuts_the_rest_is_the_same():
    with_cuts, without = listed("skip-whole"), listed("skip-whole", check_cuts=False)
    assert {n: (i.shape, i.calls) for n, i in with_cuts.items()} == {n: (i.shape, i.calls) for n, i in without.items()}
    assert all(info.is_cut is None for info in without.values())


def test_a_model_that_refuses_to_be_followed_is_measured(monkeypatch):
    from posthoc_inn.features import dataflow

    def refuse(*_, **__):
        raise RuntimeError("not here")

    model, x = tiny_model("skip-inside")
    followed = [(i.name, i.is_cut) for i in list_layers(model, x) if i.calls == 1]
    monkeypatch.setattr(dataflow.DataFlow, "__torch_dispatch__", refuse)
    assert [(i.name, i.is_cut) for i in list_layers(model, x) if i.calls == 1] == followed


def test_a_version_of_torch_that_cannot_follow_its_operations_gives_the_same_cuts():
    code = """
        import torch.utils._python_dispatch as dispatch
        del dispatch.TorchDispatchMode
        from posthoc_inn.features import dataflow, list_layers
        from posthoc_inn.testing.models import tiny_model
        assert dataflow.TorchDispatchMode.__module__ == dataflow.__name__
        print([(i.name, i.is_cut) for i in list_layers(*tiny_model("skip-inside")) if i.calls == 1])
    """
    run = [sys.executable, "-c", textwrap.dedent(code)]
    found = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    followed = [(i.name, i.is_cut) for i in list_layers(*tiny_model("skip-inside")) if i.calls == 1]
    assert found.strip() == str(followed)


def test_storages_are_told_apart_by_their_memory_where_torch_hides_their_place(monkeypatch):
    expected = [[(i.name, i.is_cut) for i in listed(name).values()] for name in ("skip-inside", "skip-whole")]
    monkeypatch.setattr(torch.UntypedStorage, "_cdata", property(lambda storage: storage.no_such_thing), raising=False)
    found = [[(i.name, i.is_cut) for i in listed(name).values()] for name in ("skip-inside", "skip-whole")]
    assert found == expected


def test_output_is_the_name_of_a_module_where_there_is_one():
    model = nn.ModuleDict({"output": nn.Linear(2, 2)})
    assert resolve_layer(model, "output") is model["output"]
    assert resolve_layer(nn.Linear(2, 2), "output").in_features == 2


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(LayerNotFoundError, match=r"Did you mean .features.2. .*Known: features.2, "):
        resolve_layer(tiny_model("plain")[0], "fetures.9.conv")
