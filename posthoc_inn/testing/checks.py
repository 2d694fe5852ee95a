"""What the checks of conformance share: problems are collected, and strangers' code is left as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from posthoc_inn.errors import ConfigError, shown

ROWS = 3
"""Images or latents that are tried."""
FAILED: Any = object()
"""What was to be tried has raised, which is told already."""
ALIKE = 1e-3
"""Difference, of the values' own size, that another batch may make: kernels differ with the number of rows."""


@dataclass(frozen=True)
class Conformance:
    """What was checked, and what is missing.

    Attributes:
        subject: What was checked.
        missing: What is wrong, a sentence each; empty when nothing is.

    >>> print(Conformance("MyAutoencoder", ("encode gives std 0: it must be positive",)))
    MyAutoencoder lacks 1 thing:
    - encode gives std 0: it must be positive
    """

    subject: str
    missing: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing

    def __str__(self) -> str:
        if self.is_good:
            return f"{self.subject} can serve."
        count = f"{len(self.missing)} thing" + "s" * (len(self.missing) != 1)
        return "\n".join([f"{self.subject} lacks {count}:", *(f"- {problem}" for problem in self.missing)])

    def raise_if_any(self) -> None:
        """Do nothing where nothing is missing.

        Raises:
            ConfigError: Something is; the message has all of it.
        """
        if self.missing:
            raise ConfigError(f"{self.subject}: {'; '.join(self.missing)}")


class Checks:
    """Collects problems; what raises is one too."""

    def __init__(self, subject: str) -> None:
        self.subject, self.problems = subject, list[str]()

    def need(self, is_good: bool, problem: str) -> bool:
        """Remember `problem` unless `is_good`, and say which."""
        if not is_good and problem not in self.problems:
            self.problems.append(problem)
        return is_good

    def attempt(self, name: str, action: Callable[[], Any]) -> Any:
        """Return what `action` returns, or FAILED where it raises."""
        try:
            return action()
        except Exception as error:  # a stranger's code raises anything
            self.need(False, f"{name} raises {type(error).__name__}: {shown(error, 160)}")
            return FAILED

    @contextmanager
    def left_as_it_is(self, module: nn.Module | None) -> Iterator[None]:
        """Try a module in eval mode, and see that trying changes neither it nor the global generator."""
        modes = {} if module is None else {m: m.training for m in module.modules()}
        if module is not None:
            module.eval()
        before, drawn = state_of(module), torch.get_rng_state()
        try:
            yield
        finally:
            after = state_of(module)
            changed = [name for name in before if not are_same(before[name], after.get(name))]
            self.need(not changed, f"it changes its own {', '.join(changed[:3])} when it is used in eval mode")
            is_same = torch.equal(torch.get_rng_state(), drawn)
            self.need(is_same, "it draws from the global random generator: what it gives must not depend on it")
            torch.set_rng_state(drawn)
            for each, is_training in modes.items():
                each.training = is_training
            if module is not None:
                module.zero_grad(set_to_none=True)

    def done(self) -> Conformance:
        """Return what was found."""
        return Conformance(self.subject, tuple(self.problems))


def check_rows(checks: Checks, name: str, decode: Callable[[Tensor], Any], latents: Tensor, images: Tensor) -> None:
    """Check that images depend on their own latent, and on nothing else."""
    checks.need(not are_same(images[0], images[1]), f"{name} gives the same image for different latents")
    again = checks.attempt(f"{name}, a second time,", lambda: as_tensor(decode(latents)))
    is_same = again is FAILED or are_same(images, again)
    checks.need(is_same, f"{name} gives other images for the same latents the second time: it must not draw anything")
    alone = checks.attempt(f"{name} of a single latent", lambda: as_tensor(decode(latents[:1])))
    checks.need(
        alone is FAILED or not is_same or are_alike(images[:1], alone),
        f"{name} gives another image for a latent alone than among others: its rows must not depend on each other",
    )


def check_gradient(checks: Checks, decode: Callable[[Tensor], Any], latents: Tensor) -> None:
    """Check that the gradient of images reaches their latents."""

    def gradient() -> Tensor | None:
        with torch.enable_grad():
            given = latents.detach().clone().requires_grad_()
            out = decode(given)
            if not isinstance(out, Tensor) or not out.requires_grad:
                return None
            (found,) = torch.autograd.grad(out.float().square().sum(), given, allow_unused=True)
            return found

    found = checks.attempt("the gradient of decode", gradient)
    if found is FAILED:
        return
    is_there = found is not None and bool(torch.isfinite(found).all()) and bool((found != 0).any())
    checks.need(
        is_there,
        "no finite gradient reaches the latents through decode: it must be made of torch operations, without no_grad "
        "or detach",
    )


def normal(rows: int, width: int, seed: int) -> Tensor:
    """Return (rows, width) draws of N(0, 1)."""
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def device_of(module: object) -> torch.device:
    """Return where a module is; the CPU for what is none."""
    parameter = next(module.parameters(), None) if isinstance(module, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


def as_tensor(value: Any) -> Tensor:
    """Return a tensor of a tensor or an array."""
    return value if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(value))


def state_of(module: nn.Module | None) -> dict[str, Tensor]:
    """Return copies of the parameters and buffers of a module."""
    if module is None:
        return {}
    return {name: tensor.detach().clone() for name, tensor in (*module.named_parameters(), *module.named_buffers())}


def are_same(a: Tensor, b: Tensor | None) -> bool:
    """Whether two tensors are equal, but for what the order of sums can change."""
    if b is None or a.shape != b.shape:
        return False
    return bool(torch.allclose(a.double(), b.double(), rtol=1e-6, atol=1e-7, equal_nan=True))


def are_alike(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, but for what other kernels for other batches can change."""
    if a.shape != b.shape:
        return False
    scale = float(a.double().abs().max())
    return math.isfinite(scale) and float((a.double() - b.double()).abs().max()) <= ALIKE * max(scale, 1e-6)
