"""Digests of a network's state: whether two have the same weights, and if not, where they first differ."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_inn.errors import DataError

_WRAPPERS = ("_orig_mod.", "module.")
"""What torch.compile and DataParallel put before every name."""


def fingerprint(model: nn.Module | Mapping[str, Any]) -> str:
    """Return a digest of names, shapes, types and values of all parameters and buffers.

    The same weights give the same digest, on whatever device, in whatever order, and whether or not DataParallel or
    torch.compile wraps the model.

    Args:
        model: A network, or its state: dotted name -> tensor.

    Raises:
        DataError: A tensor has no values (on the meta device), or a type of its own whose bytes cannot be read.

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
    return [
        (name, f"{str(tensor.dtype).removeprefix('torch.')} {_shape(tensor)} {_digest(name, tensor)}")
        for name, tensor in sorted(plain_state(model).items())
    ]


def _shape(tensor: Tensor) -> str:
    if tensor.is_nested:
        return f"nested {tensor.ndim}d"  # its rows have shapes, which the digest tells apart
    return str(tuple(tensor.shape))


def _digest(name: str, tensor: Tensor) -> str:
    try:
        return _digest_of(tensor.detach())
    except DataError:
        raise
    except Exception as error:
        # Subclasses and rare types of numbers raise whatever their authors chose.
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(
            f"The values of {name} ({type(tensor).__name__}, {tensor.dtype}) cannot be read as bytes ({reason}), so "
            "that the model could not be recognised later. Use the model with ordinary tensors, not quantised."
        ) from error


def _digest_of(tensor: Tensor) -> str:
    if tensor.is_meta:
        raise DataError(
            "The model has tensors on the meta device, without values, so that it cannot be recognised later. Build it "
            "on a real device and load its weights."
        )
    inner = getattr(tensor, "__tensor_flatten__", None)
    if tensor.is_nested:
        return _joined("nested", [(_shape(row), _digest_of(row)) for row in tensor.unbind()])
    if inner is not None:
        names, context = inner()
        # What is packed and how: the same bytes with another scale are other values.
        parts = [(f"{n} {getattr(tensor, n).dtype} {_shape(getattr(tensor, n))}", getattr(tensor, n)) for n in names]
        return _joined(f"{type(tensor).__name__} {context!r}", [(text, _digest_of(part)) for text, part in parts])
    if tensor.is_quantized:
        return _joined(_quantiser(tensor), [("integers", _digest_of(tensor.int_repr()))])
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    flat = tensor.cpu().resolve_conj().resolve_neg().contiguous().flatten()
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()


def _quantiser(tensor: Tensor) -> str:
    """Return the scheme, scales and zero points: the same integers with another scale are other values."""
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return f"{tensor.qscheme()} {tensor.q_scale()!r} {tensor.q_zero_point()}"
    scales, zeros = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
    return f"{tensor.qscheme()} {tensor.q_per_channel_axis()} {_digest_of(scales)} {_digest_of(zeros)}"


def _joined(head: str, parts: list[tuple[str, str]]) -> str:
    digest = hashlib.sha256(head.encode())
    for text, values in parts:
        digest.update(f"\n{text} {values}".encode())
    return digest.hexdigest()
