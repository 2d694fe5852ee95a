"""See what a trained vision network has learned to see, and what it has learned to ignore."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from posthoc_inn.features import LayerExtractor, list_layers, untouched
    from posthoc_inn.interpreter import Interpreter
    from posthoc_inn.plugins.hookspecs import hookimpl

# Resolved on first use (PEP 562): importing the package, or asking the command line for help, must not import torch.
_LAZY = {
    "Interpreter": "posthoc_inn.interpreter",
    "LayerExtractor": "posthoc_inn.features",
    "list_layers": "posthoc_inn.features",
    "untouched": "posthoc_inn.features",
    "hookimpl": "posthoc_inn.plugins.hookspecs",
}

__all__ = ["Interpreter", "LayerExtractor", "__version__", "hookimpl", "list_layers", "untouched"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
