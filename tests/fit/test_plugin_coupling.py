"""A plugin's coupling, from its registration to a fit, a bundle and samples."""

import torch
from small_parts import SPEC, TINY, network

from posthoc_inn import Interpreter, hookimpl
from posthoc_inn.datasets import ColorDigits
from posthoc_inn.flows import AffineCoupling
from posthoc_inn.plugins import get_plugin_manager


class ShiftCoupling(AffineCoupling):
    """An affine coupling of another class, so that none of the built-in shortcuts is taken for it."""


class Plugin:
    @hookimpl
    def register_flows(self, register):
        register("shift", ShiftCoupling, licence="MIT")


def test_a_registered_coupling_is_fitted_saved_loaded_and_sampled_from(tmp_path):
    get_plugin_manager.cache_clear()
    try:
        get_plugin_manager().register(Plugin(), distribution="shifty")
        images = torch.stack([ColorDigits()[k][0] for k in range(80)])
        config = TINY.replace(flow=TINY.flow.replace(kind="shift"))
        model = network()
        interpreter = Interpreter(model, "2", spec=SPEC, preset=config, precision="32").fit(images)
        assert {type(c) for b in interpreter.flow_.flow.parts() for c in b.couplings} == {ShiftCoupling}
        interpreter.save(tmp_path / "bundle")
        loaded = Interpreter.load(tmp_path / "bundle", model=model)
        assert torch.equal(loaded.sample(images[:2], n=2), interpreter.sample(images[:2], n=2))
    finally:
        get_plugin_manager.cache_clear()
