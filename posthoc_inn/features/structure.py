"""What a layer or a model may return, from tensor to nested dataclass: find, choose, replace a tensor."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from posthoc_inn.errors import ConfigError, ShapeError

Path = tuple[Any, ...]

LISTED = 6
"""Tensors, or keys, that a message lists."""


@dataclass(frozen=True)
class Leaf:
    """One tensor inside a returned structure, and the keys, indices or attributes that lead to it."""

    path: Path
    tensor: Tensor

    @property
    def label(self) -> str:
        """The path as it is passed to `output=`, for instance ``"1"`` or ``"hidden_states.0"``."""
        return ".".join(str(key) for key in self.path)


def shape_text(shape: torch.Size | tuple[int, ...], *, batch: bool = True) -> str:
    """Write a shape as ``(B, 8, 4)``: with `batch`, the first size is shown as the letter."""
    sizes = ["B", *map(str, shape[1:])] if batch and len(shape) else list(map(str, shape))
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def children(value: Any) -> list[tuple[Any, Any]] | None:
    """Return the (key, value) pairs of a container, or None for anything that is not one."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (tuple, list)):
        return list(enumerate(value))
    if isinstance(value, SimpleNamespace):
        return list(vars(value).items())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f.name, getattr(value, f.name, None)) for f in dataclasses.fields(value)]
    return None


def leaves(value: Any, path: Path = ()) -> list[Leaf]:
    """Return every tensor inside `value`, in order."""
    if isinstance(value, Tensor):
        return [Leaf(path, value)]
    return [leaf for key, inner in children(value) or () for leaf in leaves(inner, (*path, key))]


def describe(value: Any) -> str:
    """Name the kind of `value`: ``tensor``, ``tuple[2]``, ``dict[a, b]``, or a type's name."""
    if isinstance(value, Tensor):
        return "tensor"
    inner = children(value)
    kind = type(value).__name__
    if inner is None:
        return kind
    if isinstance(value, (tuple, list)):
        return f"{kind}[{len(inner)}]"
    return f"{kind}[{', '.join(str(key) for key, _ in inner[:LISTED])}{', ...' if len(inner) > LISTED else ''}]"


def options_text(found: list[Leaf], argument: str) -> str:
    """List the first of `found` as what could be passed: ``output=0 (B, 8, 4, 4), output='mask' (B, 4)``."""
    shown = found[:LISTED]
    labels = [leaf.path[0] if len(leaf.path) == 1 else leaf.label for leaf in shown]
    text = ", ".join(
        f"{argument}={label!r} {shape_text(leaf.tensor.shape)}" for label, leaf in zip(labels, shown, strict=True)
    )
    return text + (f", ... ({len(found) - LISTED} more)" if len(found) > LISTED else "")


def _matching(value: Any, which: int | str, found: list[Leaf]) -> list[Leaf]:
    if isinstance(which, int):
        keys = [key for key, _ in children(value) or ()]
        if not -len(keys) <= which < len(keys):
            return []
        return [leaf for leaf in found if leaf.path[:1] == (keys[which],)]
    return [leaf for leaf in found if leaf.label == which or leaf.label.startswith(f"{which}.")]


def pick(value: Any, which: int | str | None, subject: str, argument: str = "output") -> Leaf:
    """Choose the floating-point tensor of a returned structure.

    Args:
        value: What was returned.
        which: Index, key, attribute or dotted path; None when there is only one candidate.
        subject: Who returned it, as the start of a sentence: ``"Layer 'attn'"``.
        argument: Name of the argument that carries `which`, for messages.

    Raises:
        ConfigError: There are several candidates and none was chosen, or the chosen one does not exist.
        ShapeError: There is no tensor, or none with floating-point numbers.
    """
    found = leaves(value)
    floats = [leaf for leaf in found if leaf.tensor.is_floating_point()]
    other = "Pass prediction_kind='none'" if argument == "prediction" else "Choose a layer before it"
    if not found:
        raise ShapeError(f"{subject} returns {describe(value)}, without a tensor in it. {other}.")
    chosen = found if which is None else _matching(value, which, found)
    if not chosen:
        accepted = f"leave {argument} out" if found[0].path == () else f"pass {options_text(floats, argument)}"
        raise ConfigError(f"{subject} returns {describe(value)}, which has no {argument}={which!r}; {accepted}.")
    chosen_floats = [leaf for leaf in chosen if leaf.tensor.is_floating_point()]
    if not chosen_floats:
        kinds = ", ".join(sorted({str(leaf.tensor.dtype) for leaf in chosen}))
        raise ShapeError(
            f"{subject} returns {kinds}; floating-point numbers are needed. "
            + (f"Pass {options_text(floats, argument)}." if floats else f"{other}.")
        )
    if len(chosen_floats) > 1:
        raise ConfigError(
            f"{subject} returns {describe(value)} with {len(chosen_floats)} tensors; "
            f"pass one of {options_text(chosen_floats, argument)}"
            + (", or prediction_kind='none' to compare no predictions." if argument == "prediction" else ".")
        )
    return chosen_floats[0]


def put(value: Any, path: Path, tensor: Tensor) -> Any:
    """Return `value` with the tensor at `path` replaced; the given structure itself is not modified."""
    if not path:
        return tensor
    key, rest = path[0], path[1:]
    if isinstance(value, (tuple, list)):
        items = list(value)
        items[key] = put(items[key], rest, tensor)
        if hasattr(value, "_fields"):
            return type(value)(*items)
        return items if isinstance(value, list) else type(value)(items)
    twin = copy.copy(value)
    if isinstance(value, Mapping):
        # A dict that is also a dataclass (as language-model libraries return) keeps both in step by itself.
        twin[key] = put(value[key], rest, tensor)
    else:
        object.__setattr__(twin, key, put(getattr(value, key), rest, tensor))
    return twin


def map_tensors(value: Any, function: Any) -> Any:
    """Return `value` with `function` applied to every tensor inside."""
    for leaf in leaves(value):
        value = put(value, leaf.path, function(leaf.tensor))
    return value
