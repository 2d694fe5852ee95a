"""Which hooks there are, and which of them a plugin implements; what looks like a slip is an error."""

from __future__ import annotations

import pluggy

from posthoc_inn.errors import PluginError, suggest
from posthoc_inn.plugins import hookspecs
from posthoc_inn.plugins.hookspecs import PROJECT


def hook_names() -> list[str]:
    """Return the name of every plugin hook, sorted."""
    return sorted(name for name, spec in vars(hookspecs).items() if hasattr(spec, f"{PROJECT}_spec"))


def checked_hooks(manager: pluggy.PluginManager, plugin: object) -> list[str]:
    """Return the names of the hooks that a plugin implements, sorted.

    Args:
        manager: pluggy's manager, with the plugin registered.
        plugin: Module or object.

    Raises:
        PluginError: It implements none, or one that does not exist, or one with other arguments, or it has a function
            that is named like a hook and not marked as one.
    """
    callers = manager.get_hookcallers(plugin) or []
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        unknown = sorted(c.name for c in callers if not c.has_spec())
        raise PluginError(
            "; ".join(f"there is no plugin hook {name!r}. {suggest(name, hook_names())}" for name in unknown)
        ) from error
    hooks = sorted(c.name for c in callers if c.has_spec())
    for name in hook_names():
        unmarked = getattr(plugin, name, None)
        if name not in hooks and callable(unmarked) and unmarked is not getattr(hookspecs, name):
            raise PluginError(f"{name} is not marked with @posthoc_inn.hookimpl")
    if not hooks:
        raise PluginError("it implements no plugin hook; mark functions with @posthoc_inn.hookimpl")
    return hooks
