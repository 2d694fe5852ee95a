"""Plugins: the hooks that they implement, what they register, and the manager that loads them."""

from __future__ import annotations

from posthoc_inn.plugins.hookspecs import FitEvent, hookimpl
from posthoc_inn.plugins.manager import PluginManager, get_plugin_manager, hook_names, limit_from_environment

__all__ = ["FitEvent", "PluginManager", "get_plugin_manager", "hook_names", "hookimpl", "limit_from_environment"]
