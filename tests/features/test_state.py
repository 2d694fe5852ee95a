"""State outside of buffers: a pass may change it, and it is put back, or told of by name."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import random
import types

import numpy as np
import pytest
import torch
from torch import nn

from posthoc_inn.errors import ModelTouchedError, PosthocInnWarning
from posthoc_inn.features import LayerExtractor, state, untouched
from posthoc_inn.features.state import HiddenState


@dataclasses.dataclass
class Counts:
    calls: int = 0
    seen: list = dataclasses.field(default_factory=list)


class Slotted:
    __slots__ = ("calls", "late")

    def __init__(self):
        self.calls = 0


class OwnList(list):
    def extend(self, items):
        raise AssertionError("a subclass's own methods are not for putting back")


def counter():
    calls = 0

    def count():
        nonlocal calls
        calls += 1

    return count


def cyclic():
    holder = types.SimpleNamespace(calls=0)
    holder.me = [holder]
    return holder


def add(box, name="calls"):
    setattr(box, name, getattr(box, name) + 1)


def set_late(box):
    box.calls += 1
    box.late = 1


STATE = {
    "tensor": (lambda: torch.zeros(3), lambda t: t.add_(1)),
    "tensor by data": (lambda: torch.zeros(3), lambda t: t.data.add_(1)),
    "tensor resized": (lambda: torch.zeros(3), lambda t: t.resize_(500).fill_(2)),
    "tensor set": (lambda: torch.zeros(3), lambda t: setattr(t, "data", torch.ones(7, dtype=torch.float64))),
    "tensor of inference": (lambda: torch.inference_mode()(torch.zeros)(3), lambda t: t.data.add_(1)),
    "nan": (lambda: torch.full((2,), float("nan")), lambda t: t.fill_(1)),
    "array": (lambda: np.zeros(3), lambda a: a.__iadd__(1)),
    "array of objects": (lambda: np.array([None, 1], dtype=object), lambda a: a.__setitem__(0, 2)),
    "array resized": (lambda: np.zeros(3), lambda a: a.resize(5, refcheck=False)),
    "torch generator": (lambda: torch.Generator().manual_seed(0), lambda g: torch.rand(1, generator=g)),
    "numpy generator": (lambda: np.random.default_rng(0), lambda g: g.random()),
    "twister": (lambda: np.random.Generator(np.random.MT19937(0)), lambda g: g.random()),
    "random state": (lambda: np.random.RandomState(0), lambda g: g.rand()),
    "python generator": (lambda: random.Random(0), lambda g: g.random()),
    "object": (Counts, add),
    "list in object": (Counts, lambda c: c.seen.append(1)),
    "slots": (Slotted, set_late),
    "two levels": (lambda: types.SimpleNamespace(a=types.SimpleNamespace(calls=0)), lambda o: add(o.a)),
    "three levels": (lambda: {"a": [types.SimpleNamespace(b={"n": 0})]}, lambda d: d["a"][0].b.update(n=1)),
    "tensor in tuple in dict": (lambda: {"k": (1, torch.zeros(2))}, lambda d: d["k"][1].fill_(3)),
    "deque": (lambda: collections.deque([1, 2], maxlen=2), lambda d: d.append(3)),
    "defaultdict": (lambda: collections.defaultdict(list), lambda d: d["a"].append(1)),
    "counter": (collections.Counter, lambda c: c.update("a")),
    "bytearray": (lambda: bytearray(b"abc"), lambda b: b.extend(b"d")),
    "own list": (lambda: OwnList([1]), lambda o: o.append(2)),
    "closure": (counter, lambda f: f()),
    "partial": (lambda: functools.partial(add, Counts()), lambda f: f()),
    "method": (lambda: types.MethodType(add, Counts()), lambda f: f()),
    "cycle": (cyclic, add),
    "module in a list": (lambda: [nn.BatchNorm1d(2)], lambda m: m[0].running_mean.add_(1)),
}


class Stateful(nn.Module):
    """Changes something on each pass."""

    def __init__(self, make, change):
        super().__init__()
        self.body = nn.Linear(2, 2)
        self.state, self.change = make(), change

    def forward(self, x):
        self.change(self.state)
        return self.body(x)


def shown(value, depth=6):
    """A picture of a value, to compare with another one."""
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), value.dtype, str(value.tolist()))
    if isinstance(value, np.ndarray):
        return (value.shape, value.tolist())
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return repr(value.get_state())
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, types.FunctionType):
        return [shown(cell.cell_contents) for cell in value.__closure__ or ()]
    if isinstance(value, functools.partial):
        return shown(value.args)
    if isinstance(value, types.MethodType):
        return shown(value.__self__)
    if isinstance(value, dict):
        return {k: shown(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, collections.deque)):
        return [shown(v, depth - 1) for v in value] if depth else "..."
    if isinstance(value, Slotted):
        return (value.calls, hasattr(value, "late"))
    if hasattr(value, "__dict__") and not isinstance(value, type):
        return {k: shown(v, depth - 1) for k, v in vars(value).items()} if depth else "..."
    return repr(value)


@pytest.mark.parametrize("kind", STATE)
def test_what_a_pass_changes_is_put_back_in_place(kind):
    model = Stateful(*STATE[kind])
    before, same = shown(model.state), model.state
    with untouched(model):
        LayerExtractor(model, "body").features(torch.ones(1, 2))
    assert model.state is same
    assert shown(model.state) == before
    model(torch.ones(1, 2))
    assert shown(model.state) != before, "the model of this test is a dud"


@pytest.mark.parametrize("kind", STATE)
def test_the_guard_finds_it_by_itself_and_names_it(kind):
    model = nn.Sequential(Stateful(*STATE[kind]))
    with pytest.raises(ModelTouchedError, match=r"0\.state|module 0 has other attribute 'state'"), untouched(model):
        model(torch.ones(1, 2))


def test_what_a_class_keeps_is_put_back_too():
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x):
            type(self).calls += 1
            return super().forward(x)

    model = nn.Sequential(Counting(2, 2))
    LayerExtractor(model, "0").features(torch.ones(1, 2))
    assert Counting.calls == 0
    with pytest.raises(ModelTouchedError, match=r"Counting\.calls, no buffer, changed"), untouched(model):
        model(torch.ones(1, 2))


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda: (n for n in range(9)), next),
        (lambda: itertools.count(), next),
        (lambda: iter([1, 2, 3, 4, 5, 6, 7, 8, 9]), next),
        (lambda: types.SimpleNamespace(a=[itertools.count(5)]), lambda o: next(o.a[0])),
    ],
    ids=["generator", "count", "list", "inside"],
)
def test_what_cannot_be_put_back_is_told_once_by_name(make, change):
    model = Stateful(make, change)
    extractor = LayerExtractor(model, "body")
    with pytest.warns(PosthocInnWarning, match=r"of the Stateful changed state.*, which cannot be put back") as told:
        extractor.features(torch.ones(1, 2))
    assert len(told) == 1
    extractor.features(torch.ones(1, 2))  # a second warning would be an error


@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_what_is_too_large_to_copy_is_told(kind):
    model = Stateful(*STATE[kind])
    found = HiddenState(dict(model.named_modules()), copy_limit=4)
    model(torch.ones(1, 2))
    assert list(found.changes()) == found.restore() == ["state"]


def test_what_a_users_hook_writes_down_stays():
    model, seen = nn.Sequential(nn.Linear(2, 2)), []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    LayerExtractor(model, "0").features(torch.ones(1, 2))
    assert seen


def test_a_class_that_raises_when_it_is_looked_at_does_no_harm():
    class Prickly:
        def __getattribute__(self, name):
            raise RuntimeError(name)

    model = Stateful(lambda: [Prickly(), Counts()], lambda s: add(s[1]))
    LayerExtractor(model, "body").features(torch.ones(1, 2))
    assert model.state[1].calls == 0


def test_an_exception_in_the_pass_comes_out_and_all_is_put_back():
    def fail(counts):
        counts.calls += 1
        raise KeyError("mine")

    model = Stateful(Counts, fail)
    with pytest.raises(Exception, match="mine"):
        LayerExtractor(model, "body").features(torch.ones(1, 2))
    assert model.state.calls == 0


def test_a_deep_and_large_tree_is_looked_into_within_bounds(monkeypatch):
    monkeypatch.setattr(state, "MAX_OBJECTS", 50)
    model = Stateful(lambda: [[[] for _ in range(100)] for _ in range(100)], lambda s: None)
    assert len(HiddenState(dict(model.named_modules()))._seen) < 60
