"""The coupling that a configuration names: one of the core's, or one that a plugin registered."""

from __future__ import annotations

import functools

import torch
from torch import nn

from posthoc_inn.config import LINEAR, FlowConfig
from posthoc_inn.errors import ConfigError
from posthoc_inn.flows.block import CouplingFactory
from posthoc_inn.flows.coupling_flow import COUPLINGS
from posthoc_inn.plugins import get_plugin_manager


def coupling_of(config: FlowConfig) -> CouplingFactory:
    """Return what makes the couplings called `config.coupling`.

    The core's own are found without loading any plugin, and no plugin can stand in for them. The linear t has no
    couplings, and nothing makes them.

    Raises:
        UnknownNameError: Nobody registers that kind.
        DuplicateNameError: Two distributions do.
        PluginError: It comes with a plugin that is broken or switched off.

    >>> coupling_of(FlowConfig(dim=4, kind="spline")).__name__
    'SplineCoupling'
    """
    name = config.coupling
    if name is None:
        return no_coupling
    if name in COUPLINGS:
        return COUPLINGS[name]
    manager = get_plugin_manager()
    manager.flows.get(name)
    # What a plugin's factory raises becomes a PluginError that names its distribution.
    return functools.partial(manager.build, manager.flows, name)


def no_coupling(config: FlowConfig, index: int, *, generator: torch.Generator) -> nn.Module:
    """Stand for the coupling that the linear t does not have.

    Raises:
        ConfigError: Always.
    """
    raise ConfigError(
        f'{LINEAR!r} is a kind of t without couplings; for couplings after it, name one: "{LINEAR}+affine".'
    )
