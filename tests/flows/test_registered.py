"""A plugin's coupling, from its registration to a fit, a bundle and samples."""

import pytest
import torch
from small_parts import SPEC, TINY, CouplingPlugin, network
from torch import nn

from posthoc_inn import Interpreter
from posthoc_inn.config import FlowConfig
from posthoc_inn.datasets import ColorDigits
from posthoc_inn.errors import PluginError, UnknownNameError
from posthoc_inn.flows import COUPLINGS, ConditionalFlow, coupling_of
from posthoc_inn.plugins import get_plugin_manager


class Shift(nn.Module):
    """The least a coupling can be: one half is shifted by a linear function of the other and the context."""

    def __init__(self, config, index, *, generator):
        super().__init__()
        self.half, self.moves_first = config.dim // 2, index % 2 == 0
        moved, kept = self.half, config.dim - self.half
        if not self.moves_first:
            moved, kept = kept, moved
        weight = torch.randn(moved, kept + config.context_dim, generator=generator, device="cpu")
        self.weight = nn.Parameter(0.1 * weight)

    def _moved(self, x, context, sign):
        first, second = x[..., : self.half], x[..., self.half :]
        moved, kept = (first, second) if self.moves_first else (second, first)
        if context is not None:
            kept = torch.cat([kept, context.expand(*kept.shape[:-1], -1)], dim=-1)
        moved = moved + sign * kept @ self.weight.T
        return torch.cat([moved, second] if self.moves_first else [first, moved], dim=-1)

    def forward(self, x, context=None):
        return self._moved(x, context, 1), x.new_zeros(x.shape[:-1])

    def inverse(self, y, context=None):
        return self._moved(y, context, -1)


@pytest.fixture
def register():
    """Return a function that registers a plugin's coupling in this process, and forget the plugin afterwards."""

    def register(name, factory):
        get_plugin_manager().register(CouplingPlugin(name, factory), distribution="posthoc-inn-theirs")

    yield register
    get_plugin_manager.cache_clear()


def preset(kind):
    return TINY.replace(flow=TINY.flow.replace(kind=kind))


def digits(n=64):
    data = ColorDigits(train=True, seed=0)
    return torch.stack([data[k][0] for k in range(n)])


def test_a_plugins_coupling_is_fitted_saved_loaded_and_sampled_from(register, tmp_path):
    register("shift", Shift)
    images, model = digits(), network()
    interpreter = Interpreter(model, "3", preset=preset("shift"), spec=SPEC, precision="32").fit(images)
    flow = interpreter.flow_
    assert isinstance(flow, ConditionalFlow)
    assert {type(c) for block in flow.flow.parts() for c in block.couplings} == {Shift}
    start = ConditionalFlow(flow.flow.config, flow.conditioner.config, coupling=Shift)
    trained = flow.flow.blocks[0].couplings[0].weight
    assert not torch.equal(trained, start.flow.blocks[0].couplings[0].weight), "it was not trained"
    expected = interpreter.sample(images[:2], n=3, seed=1)
    assert expected.shape == (2, 3, 3, 28, 28)
    interpreter.save(tmp_path / "run")
    loaded = Interpreter.load(tmp_path / "run", model=model)
    assert torch.equal(loaded.sample(images[:2], n=3, seed=1), expected)


def test_a_coupling_that_nobody_registers_is_refused_before_anything_is_trained():
    interpreter = Interpreter(network(), "3", preset=preset("afine"), spec=SPEC)
    with pytest.raises(UnknownNameError, match=r"no flow 'afine'.*'affine'"):
        interpreter.fit(digits(8))


def test_what_a_plugins_factory_raises_names_the_plugin(register):
    def broken(config, index, *, generator):
        raise ZeroDivisionError("too small")

    register("broken", broken)
    interpreter = Interpreter(network(), "3", preset=preset("broken"), spec=SPEC)
    with pytest.raises(PluginError, match=r"flow 'broken' of posthoc-inn-theirs.*too small"):
        interpreter.fit(digits(8))


def test_no_plugin_stands_in_for_a_coupling_of_the_core(register):
    register("affine", Shift)
    assert coupling_of(FlowConfig(dim=4, kind="affine")) is COUPLINGS["affine"]
