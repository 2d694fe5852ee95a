"""Torch's state around a call: what the package computes is the same whatever a user has set before.

Gradients may be off, inference mode or autocast on, the default type float64, the default device a GPU. The package
runs as in a fresh process; the user's model and data run as the user has it.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

_CPU = torch.device("cpu")


class _Users(threading.local):
    """What the user has set, while `plain_torch` hides it from this thread; `depth` counts how often."""

    depth = 0
    device = _CPU
    has_gradients = True
    is_inference = False


class _Types:
    """The default number type is one for all threads: the first that needs float32 sets it, the last puts it back."""

    lock = threading.Lock()
    depth = 0
    users = torch.float32


_users = _Users()


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """Run as in a fresh process: gradients on, no inference mode, float32 and the CPU by default, no autocast.

    >>> with torch.inference_mode(), plain_torch():
    ...     torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    (True, False)
    """
    if _users.depth == 0:
        _users.device = torch.get_default_device()
        _users.has_gradients, _users.is_inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    _users.depth += 1
    _take_float32()
    try:
        with contextlib.ExitStack() as entered:
            entered.enter_context(torch.inference_mode(False))
            entered.enter_context(torch.enable_grad())
            entered.enter_context(_default_device(_CPU))
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    entered.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        _give_back()
        _users.depth -= 1


@contextlib.contextmanager
def users_defaults() -> Iterator[None]:
    """Run the user's model, inside `plain_torch`, with the default type and device that the user has set.

    Whether gradients are recorded is the package's to say here, and autocast stays off.
    """
    if _users.depth == 0:
        yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(_Types.users)
    try:
        with _default_device(_users.device):
            yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def users_torch() -> Iterator[None]:
    """Run the user's data, inside `plain_torch`, as the user has set torch; autocast alone stays off."""
    if _users.depth == 0:
        yield
        return
    with (
        users_defaults(),
        torch.inference_mode(_users.is_inference),
        torch.set_grad_enabled(_users.has_gradients),
    ):
        yield


def in_plain_torch(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function run in `plain_torch`.

    >>> @in_plain_torch
    ... def ones() -> torch.Tensor:
    ...     return torch.ones(2, requires_grad=True) * 2
    >>> with torch.no_grad():
    ...     ones().requires_grad
    True
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with plain_torch():
            return function(*args, **kwargs)

    return run


def _default_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    # As a context it looks at every call of torch: entered only where it changes something.
    return contextlib.nullcontext() if torch.get_default_device() == device else device


def _take_float32() -> None:
    with _Types.lock:
        if _Types.depth == 0:
            _Types.users = torch.get_default_dtype()
            if _Types.users != torch.float32:
                torch.set_default_dtype(torch.float32)
        _Types.depth += 1


def _give_back() -> None:
    with _Types.lock:
        _Types.depth -= 1
        if _Types.depth == 0 and torch.get_default_dtype() != _Types.users:
            torch.set_default_dtype(_Types.users)
