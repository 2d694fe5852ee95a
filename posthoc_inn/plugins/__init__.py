"""Plugins: the hooks that they implement, what they register, and the manager that loads them."""

from __future__ import annotations

from posthoc_inn.plugins.environment import limit_from_environment
from posthoc_inn.plugins.hookspecs import FitEvent, hookimpl
from posthoc_inn.plugins.implementation import hook_names
from posthoc_inn.plugins.manager import PluginManager, get_plugin_manager

__all__ = ["FitEvent", "PluginManager", "get_plugin_manager", "hook_names", "hookimpl", "limit_from_environment"]
