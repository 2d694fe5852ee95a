"""Third-party libraries that only some analyses need."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from posthoc_inn.errors import PluginError


def require(module: str, extra: str, purpose: str) -> Any:
    """Import a library that one of this package's extras brings, quietly.

    Args:
        module: Dotted name of the module.
        extra: The extra of this package that installs it.
        purpose: What it is needed for, for the message.

    Raises:
        PluginError: It cannot be imported.

    >>> require("math", "metrics", "arithmetic").floor(2.5)
    2
    """
    try:
        with warnings.catch_warnings():
            # What a library finds missing among its own optional parts is no business of ours.
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        raise PluginError(
            f"{purpose} needs {module.partition('.')[0]}, which cannot be imported ({error}): "
            f"pip install posthoc-inn[{extra}]"
        ) from error
