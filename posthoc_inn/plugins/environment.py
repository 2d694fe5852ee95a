"""Which plugins the environment has, and which of them POSTHOC_INN_PLUGINS lets through.

All that are installed are loaded, unless the environment variable POSTHOC_INN_PLUGINS is set. Empty or "none" leaves
the core's own registrations only; otherwise it lists distributions or entry points, comma-separated.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from importlib.metadata import EntryPoint

from posthoc_inn.plugins.hookspecs import PROJECT

ENVIRONMENT = "POSTHOC_INN_PLUGINS"


def normalize(name: str) -> str:
    """Return a distribution's or entry point's name as package indexes compare them."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def owner_of(entry_point: EntryPoint) -> tuple[str, str]:
    """Return name and version of the distribution of an entry point; its module where there is none."""
    distribution = entry_point.dist
    if distribution is None:
        return entry_point.value.partition(":")[0], ""
    return distribution.name or entry_point.module, distribution.version or ""


def installed_entry_points() -> list[EntryPoint]:
    """Return the entry points of every installed plugin, sorted by distribution; imports none of them."""
    return sorted(importlib.metadata.entry_points(group=PROJECT), key=lambda e: (*owner_of(e), e.name))


def limit_from_environment() -> list[str] | None:
    """Return the names POSTHOC_INN_PLUGINS limits plugins to; None when it is not set."""
    value = os.environ.get(ENVIRONMENT)
    if value is None:
        return None
    return [] if value.strip().lower() == "none" else [name for name in value.split(",") if name.strip()]
