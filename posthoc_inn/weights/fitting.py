"""Fits a state under other names (prefixes, wrappers, tied or renamed tensors) into a model, whole or not at all."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_inn.errors import DataError, listed, shown

_OPTIONAL = "num_batches_tracked"
"""Counter of batch norm that checkpoints from before PyTorch 0.4.1 lack; inference does not use it."""
_WRAPPER_PARTS = ("_orig_mod", "module")
"""Parts of names that torch.compile, DataParallel and AveragedModel put in, around the network or a part of it."""


def load_into(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load `state` into `model`, strictly; where anything does not fit, the model stays as it was.

    What `load_state_dict` takes is taken, also where it renames or where one of two tied names is stored. A prefix of
    the network's names is taken off, and what lies beside it (a loss's weights, a metric's counts) is left out.

    Args:
        model: Network to be filled, in place.
        state: Dotted name -> tensor.
        source: Where the weights are from, for messages.

    Raises:
        DataError: Names, shapes or kinds of numbers differ, a value is NaN, or a tensor cannot be copied from or to.
    """
    everything = model.state_dict()
    wanted = {name: value for name, value in everything.items() if isinstance(value, Tensor)}
    empty = [name for name, tensor in wanted.items() if tensor.is_meta]
    if empty:
        text = listing(f"{len(empty)} of the {type(model).__name__}'s tensors are on the meta device", empty)
        raise DataError(f"{text}: there is no memory to load weights into. Build the model on a real device.")
    state = _with_tied(matched(state, wanted, source=source), model)
    _check_copyable(state, wanted, source)
    # What is no tensor (a module's extra state) and old files' missing counters stay the model's own.
    full: dict[str, Any] = {n: v for n, v in everything.items() if n not in wanted or n.endswith(_OPTIONAL)} | state
    _check_fit(model, state, wanted, full, source)
    broken = [name for name, tensor in state.items() if _has_nan(tensor)]
    if broken:
        raise DataError(listing(f"{len(broken)} tensors of {source} hold NaN", broken) + ".")
    before = {name: tensor.detach().clone() for name, tensor in wanted.items()}
    try:
        model.load_state_dict(full)
    except Exception as error:
        with torch.no_grad():
            for name, tensor in wanted.items():
                tensor.copy_(before[name])
        said = " ".join(str(error).split())[:300]
        raise DataError(f"The weights of {source} cannot be copied into the {type(model).__name__}: {said}") from error


def matched(state: Mapping[str, Tensor], wanted: Mapping[str, Any], *, source: str = "the file") -> dict[str, Tensor]:
    """Return `state` under the names of `wanted`, without a prefix and without wrappers' parts of names.

    Args:
        state: Dotted name -> tensor.
        wanted: The model's state.
        source: Where the weights are from, for messages.

    Raises:
        DataError: The file holds the network several times, under different prefixes.

    >>> list(matched({"model.a.weight": torch.ones(1), "loss.weight": torch.ones(1), "model.b": torch.ones(1)},
    ...              {"a.weight": torch.ones(1), "b": torch.ones(1)}))
    ['a.weight', 'b']
    """
    state = _unwrapped_names(state, wanted)
    if any(name in wanted for name in state):
        return state
    hits: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        hits.update(".".join(parts[:i]) + "." for i in range(1, len(parts)) if ".".join(parts[i:]) in wanted)
    if not hits:
        return state
    most = max(hits.values())
    prefixes = [prefix for prefix, count in hits.items() if count == most]
    if len(prefixes) > 1 and 2 * len(prefixes) * most > len(state):
        raise DataError(
            f"{source} holds the network's names under more than one prefix "
            f"({listed([repr(p) for p in prefixes], 4)}). "
            "Save the entries of one of them, without the prefix, to a file of its own."
        )
    inner = {name.removeprefix(prefixes[0]): t for name, t in state.items() if name.startswith(prefixes[0])}
    # A small network's names are also those of a large network's parts: only a file that is mostly this network fits.
    return inner if 2 * len(inner) > len(state) else state


def listing(head: str, items: list[str], limit: int = 4) -> str:
    """Return `head` with the first items in brackets; nothing where there are none.

    >>> listing("2 are missing", ["a", "b"])
    '2 are missing (a, b)'
    """
    if not items:
        return ""
    return f"{head} ({listed(items, limit, 100)})"


def _unwrapped_names(state: Mapping[str, Tensor], wanted: Mapping[str, Any]) -> dict[str, Tensor]:
    own = {_bare(name): name for name in wanted}
    bare = [_bare(name) for name in state]
    if len(own) != len(wanted) or len(set(bare)) != len(bare):
        return dict(state)
    fitted = {name if name in wanted else own.get(short, short): name for name, short in zip(state, bare, strict=True)}
    found = [(new, old) for new, old in fitted.items() if new in wanted]
    if found and all(old not in wanted and old.partition(".")[0] in _WRAPPER_PARTS for _, old in found):
        # A wrapper's own entries (how often it averaged) and others' lie beside the wrapped network.
        fitted = {new: old for new, old in fitted.items() if old.partition(".")[0] in _WRAPPER_PARTS}
    return {new: state[old] for new, old in fitted.items()}


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_PARTS)


def _with_tied(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Add the names that the file lacks but whose tensor in the model is one that the file has under another name."""
    groups: dict[int, list[str]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor):
            groups.setdefault(id(value), []).append(name)
    found = dict(state)
    for names in groups.values():
        stored = next((name for name in names if name in state), None)
        if stored is not None:
            found.update({name: state[stored] for name in names if name not in state})
    return found


def _check_copyable(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> None:
    problems = []
    for name, tensor in state.items():
        kind, plain = _storage_kind(tensor), _storage_kind(wanted[name]) if name in wanted else ""
        if kind != plain and kind:
            problems.append(f"{name} is {kind}")
        elif kind != plain:
            problems.append(f"{name} is an ordinary tensor, in the model {plain}")
    if problems:
        text = listing(f"{len(problems)} tensors of {source} cannot be copied into the model", problems)
        raise DataError(f"{text}. Save them as the model holds them (dense, not quantised, with values).")


def _storage_kind(tensor: Tensor) -> str:
    if tensor.is_meta:
        return "on the meta device, without values"
    if tensor.is_nested:
        return "nested"
    if tensor.is_quantized:
        return "quantised"
    return "" if tensor.layout == torch.strided else "sparse"


def _check_fit(
    model: nn.Module,
    state: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    full: Mapping[str, Any],
    source: str,
) -> None:
    missing = [n for n in wanted if n not in full]
    known = model.state_dict()
    unexpected = [n for n in state if n not in known]
    shapes = [
        f"{n} is {_shape(state[n])} in the file, {_shape(wanted[n])} in the model"
        for n in wanted
        if n in state and not wanted[n].is_nested and state[n].shape != wanted[n].shape
    ]
    kinds = [
        f"{n} is {state[n].dtype} in the file, {wanted[n].dtype} in the model"
        for n in wanted
        if n in state and _number(state[n]) != _number(wanted[n])
    ]
    said = ""
    if missing or unexpected:
        fitting = {n: v for n, v in full.items() if n not in wanted or n not in state or v.shape == wanted[n].shape}
        asked = _asked(model, fitting)
        if asked is not None:
            missing, unexpected, said = [n for n in asked[0] if n not in full], asked[1], asked[2]
    parts = [
        listing(f"{len(missing)} of the model's {len(wanted)} tensors are missing", missing),
        listing(f"{len(unexpected)} are not the model's", unexpected),
        listing(f"{len(shapes)} have another shape", shapes),
        listing(f"{len(kinds)} have another kind of number", kinds),
        said,
    ]
    report = "; ".join(part for part in parts if part)
    if report:
        raise DataError(
            f"The weights of {source} do not fit the {type(model).__name__}: {shown(report)}. Are they another "
            "network's, or another number of classes?"
        )


def _asked(model: nn.Module, full: Mapping[str, Any]) -> tuple[list[str], list[str], str] | None:
    """Let a copy of the model without memory load `full`, with all the renaming that its modules do.

    Returns:
        Missing and unexpected names, and what else was wrong; None where the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    for value in model.state_dict(keep_vars=True).values():
        if isinstance(value, Tensor):
            empty = torch.empty_like(value.detach(), device="meta")
            memo[id(value)] = nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty
    try:
        twin = copy.deepcopy(model, memo)
    except Exception:
        return None
    with warnings.catch_warnings():
        # torch warns that copying to tensors without memory does nothing, which is meant here.
        warnings.simplefilter("ignore")
        try:
            keys = twin.load_state_dict(full, strict=False)
        except Exception as error:
            return [], [], " ".join(str(error).split())[:300]
    return list(keys.missing_keys), list(keys.unexpected_keys), ""


def _number(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _has_nan(tensor: Tensor) -> bool:
    if not any(_number(tensor)) or tensor.is_quantized:
        return False
    try:
        return bool(torch.isnan(tensor).any())
    except (NotImplementedError, RuntimeError):
        # Numbers of eight and fewer bits, for which few operations are written.
        try:
            return bool(torch.isnan(tensor.float()).any())
        except (NotImplementedError, RuntimeError):
            return False


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
