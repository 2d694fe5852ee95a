"""The coupling that a configuration names: one of the core's, or one that a plugin registered."""

from __future__ import annotations

import functools

from posthoc_inn.config import FlowConfig
from posthoc_inn.flows.block import CouplingFactory
from posthoc_inn.flows.coupling_flow import COUPLINGS
from posthoc_inn.plugins import get_plugin_manager


def coupling_of(config: FlowConfig) -> CouplingFactory:
    """Return what makes the couplings called `config.kind`.

    The core's own are found without loading any plugin, and no plugin can stand in for them.

    Raises:
        UnknownNameError: Nobody registers that kind.
        DuplicateNameError: Two distributions do.
        PluginError: It comes with a plugin that is broken or switched off.

    >>> coupling_of(FlowConfig(dim=4, kind="spline")).__name__
    'SplineCoupling'
    """
    if config.kind in COUPLINGS:
        return COUPLINGS[config.kind]
    manager = get_plugin_manager()
    manager.flows.get(config.kind)
    # What a plugin's factory raises becomes a PluginError that names its distribution.
    return functools.partial(manager.build, manager.flows, config.kind)
