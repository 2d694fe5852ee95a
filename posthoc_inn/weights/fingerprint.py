"""Digests of a network's state: whether two have the same weights, and if not, where they first differ."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_WRAPPERS = ("_orig_mod.", "module.")
"""What torch.compile and DataParallel put before every name."""


def fingerprint(model: nn.Module | Mapping[str, Any]) -> str:
    """Return a digest of names, shapes, types and values of all parameters and buffers.

    The same weights give the same digest, on whatever device, in whatever order, and whether or not DataParallel or
    torch.compile wraps the model.

    Args:
        model: A network, or its state: dotted name -> tensor.

    >>> layer = nn.Linear(2, 2)
    >>> fingerprint(layer) == fingerprint(layer.state_dict())
    True
    >>> fingerprint(layer) == fingerprint(nn.Linear(2, 2))
    False
    """
    digest = hashlib.sha256()
    for name, text in _tensors(model):
        digest.update(f"{name}\n{text}\n".encode())
    return digest.hexdigest()[:32]


def describe_tensors(model: nn.Module | Mapping[str, Any]) -> dict[str, str]:
    """Return type, shape and a short digest of the values of every parameter and buffer, by name.

    >>> {n: t[:-12] for n, t in describe_tensors(nn.Linear(3, 2)).items()}
    {'bias': 'float32 (2,) ', 'weight': 'float32 (2, 3) '}
    """
    return {name: text[:-52] for name, text in _tensors(model)}


def plain_state(model: nn.Module | Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a model's state by name, without what wrappers put before every name.

    >>> list(plain_state({"module.weight": torch.zeros(1), "module.bias": torch.zeros(1)}))
    ['weight', 'bias']
    """
    state = model.state_dict() if isinstance(model, nn.Module) else model
    return without_wrappers({name: value for name, value in state.items() if isinstance(value, Tensor)})


def without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` under the names that it has without DataParallel and torch.compile, however they are nested.

    >>> list(without_wrappers({"module._orig_mod.weight": torch.zeros(1)}))
    ['weight']
    """
    found = dict(state)
    prefix = _common_wrapper(found)
    while prefix is not None:
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
        prefix = _common_wrapper(found)
    return found


def _common_wrapper(names: Collection[str]) -> str | None:
    return next((p for p in _WRAPPERS if names and all(name.startswith(p) for name in names)), None)


def _tensors(model: nn.Module | Mapping[str, Any]) -> list[tuple[str, str]]:
    tensors = plain_state(model)
    return [
        (n, f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)} {_digest(t)}") for n, t in sorted(tensors.items())
    ]


def _digest(tensor: Tensor) -> str:
    tensor = tensor.detach()
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    elif tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    flat = tensor.cpu().resolve_conj().resolve_neg().contiguous().flatten()
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()
