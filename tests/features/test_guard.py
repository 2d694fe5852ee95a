"""The guard finds every way to touch a model, and says which."""

from __future__ import annotations

import random
import types

import numpy as np
import pytest
import torch
from torch import nn

from posthoc_inn.errors import ModelTouchedError
from posthoc_inn.features import guard, snapshot, untouched
from posthoc_inn.testing.models import tiny_model


def run_in_train_mode(m):
    m(torch.rand(3, 3, 8, 8))


def swap_layer(m):
    m.head = nn.Linear(96, 4)


def own_forward(m):
    m.forward = types.MethodType(lambda self, x: x, m)


def write_through_data(m):
    m.conv.weight.data[0, 0, 0, 0] += 0.5


def write_same_values(m):
    with torch.no_grad():
        m.conv.weight.add_(0)


def replace_weight(m):
    m.head.weight = nn.Parameter(m.head.weight.detach().clone())


def change_class(m):
    m.drop.__class__ = nn.Identity


TOUCHES = {
    "running statistics": (run_in_train_mode, r"buffer bn.running_mean changed \(max \|Δ\| 0\.\d+\)"),
    "value": (lambda m: m.conv.bias.data.add_(0.25), r"parameter conv.bias changed \(max \|Δ\| 0.25\)"),
    "value through data": (write_through_data, r"parameter conv.weight changed \(max \|Δ\| 0.5\)"),
    "same value": (write_same_values, "parameter conv.weight was written to in place with the same values"),
    "not finite": (lambda m: m.conv.bias.data.fill_(float("nan")), "conv.bias changed .to or from values that are not"),
    "dtype": (lambda m: m.head.half(), "parameter head.weight changed from Parameter .* torch.float16"),
    "replaced weight": (replace_weight, "parameter head.weight was replaced by another tensor"),
    "requires_grad": (lambda m: m.conv.weight.requires_grad_(False), "conv.weight requires_grad changed from True to"),
    "gradient": (lambda m: m(torch.rand(2, 3, 8, 8)).sum().backward(), "gradient of parameter conv.weight was set"),
    "zeroed gradient": (lambda m: m.head.bias.grad.zero_(), r"gradient of parameter head.bias changed \(max \|Δ\| 1\)"),
    "removed gradient": (lambda m: m.zero_grad(), "gradient of parameter head.bias was removed"),
    "tensor hook": (lambda m: m.conv.weight.register_hook(print), "conv.weight has other tensor hooks"),
    "train flag": (lambda m: m.bn.eval(), "module bn changed its train flag from True to False"),
    "forward hook": (lambda m: m.bn.register_forward_hook(print), r"bn has other forward hooks .*0 before, 1 now"),
    "pre hook": (lambda m: m.register_forward_pre_hook(print), "the model has other forward pre hooks"),
    "backward hook": (lambda m: m.bn.register_full_backward_hook(print), "module bn has other backward hooks"),
    "state-dict hook": (lambda m: m.bn.register_state_dict_post_hook(lambda *_: None), "bn has other state dict hooks"),
    "swapped layer": (swap_layer, r"module head was replaced by another module \(Linear\)"),
    "added layer": (lambda m: m.add_module("extra", nn.ReLU()), "module extra was added"),
    "removed layer": (lambda m: delattr(m, "drop"), "module drop was removed"),
    "class": (change_class, "module drop changed its class from Dropout to Identity"),
    "own forward": (own_forward, "the model has a new attribute 'forward'"),
    "attribute": (lambda m: setattr(m.drop, "p", 0.1), "module drop has its attribute 'p' set anew"),
    "added buffer": (lambda m: m.bn.register_buffer("more", torch.zeros(1)), "buffer bn.more was added"),
    "torch generator": (lambda m: torch.rand(1), "the global torch generator moved on"),
    "numpy generator": (lambda m: np.random.rand(), "the global numpy generator moved on"),
    "python generator": (lambda m: random.random(), "the global python generator moved on"),
    "switch": (lambda m: torch.set_default_dtype(torch.float64), "default dtype changed from torch.float32 to"),
    "grad mode": (lambda m: torch.set_grad_enabled(False), "grad mode changed from True to False"),
    "precision": (lambda m: torch.set_float32_matmul_precision("medium"), "matmul precision changed"),
    "deterministic": (lambda m: torch.use_deterministic_algorithms(True), "deterministic algorithms changed"),
    "global hook": (lambda m: nn.modules.module.register_module_forward_hook(print), "global module hooks changed"),
}


@pytest.fixture
def _switches_back():
    before = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    hooks = dict(nn.modules.module._global_forward_hooks)
    yield
    torch.set_default_dtype(before[0])
    torch.set_float32_matmul_precision(before[1])
    torch.set_grad_enabled(True)
    torch.use_deterministic_algorithms(False)
    nn.modules.module._global_forward_hooks.clear()
    nn.modules.module._global_forward_hooks.update(hooks)


def prepared():
    model, _ = tiny_model("training")
    model.head.bias.grad = torch.ones(4)
    return model


@pytest.mark.usefixtures("_switches_back")
@pytest.mark.parametrize("touch", TOUCHES)
def test_every_touch_is_found_and_named(touch):
    act, message = TOUCHES[touch]
    model = prepared()
    with pytest.raises(ModelTouchedError, match=message), untouched(model):
        act(model)


@pytest.mark.parametrize("touch", ["value", "value through data", "running statistics", "zeroed gradient"])
def test_values_of_a_model_too_large_to_copy_are_compared_by_digest(touch, monkeypatch):
    monkeypatch.setattr(guard, "COPY_LIMIT", 0)
    model = prepared()
    with pytest.raises(ModelTouchedError, match="changed"), untouched(model):
        TOUCHES[touch][0](model)


def test_an_untouched_model_passes():
    model = prepared()
    with torch.no_grad():
        model.conv.bias[0] = float("nan")
    with untouched(model) as before:
        model.state_dict()
        list(model.named_modules())
    assert before.compare(model) == []


def test_without_values_only_writes_that_torch_counts_are_found():
    model = prepared()
    with untouched(model, check_values=False):
        write_through_data(model)
    with pytest.raises(ModelTouchedError, match=r"conv\.weight was written to"), untouched(model, check_values=False):
        write_same_values(model)


def test_random_numbers_may_be_allowed():
    with untouched(prepared(), check_generators=False):
        torch.rand(1)


def touch_and_raise(model, touch):
    with untouched(model):
        touch(model)
        raise KeyError("own")


def test_an_exception_goes_on_with_a_note_of_what_was_touched():
    with pytest.raises(KeyError, match="own") as caught:
        touch_and_raise(prepared(), lambda m: m.eval())
    assert "changed its train flag" in caught.value.__notes__[0]
    with pytest.raises(KeyError, match="own") as caught:
        touch_and_raise(prepared(), lambda m: None)
    assert not hasattr(caught.value, "__notes__")


def test_a_shared_tensor_is_reported_once_and_a_long_report_is_cut():
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, shared)
    before = snapshot(model)
    shared.weight.data.add_(1)
    assert len(before.compare(model)) == 1
    many = nn.Sequential(*(nn.ReLU() for _ in range(40)))
    with pytest.raises(ModelTouchedError, match=r"(?s)\(41 changes\).*and 11 more"), untouched(many):
        many.eval()


def test_where_torch_does_not_count_writes_values_alone_are_compared(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "_version", property(lambda tensor: tensor.no_such_thing))
    net = torch.nn.Linear(2, 2)
    before = snapshot(net)
    with torch.no_grad():
        net.bias.copy_(net.bias.clone())
    assert before.compare(net) == []
    with torch.no_grad():
        net.bias.add_(1)
    assert any("bias changed" in change for change in before.compare(net))
