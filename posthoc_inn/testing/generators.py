"""Says what a generator lacks to serve as a decoder: every problem at once, each with what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from posthoc_inn.errors import ConfigError
from posthoc_inn.testing.checks import (
    FAILED,
    ROWS,
    Checks,
    Conformance,
    are_same,
    as_tensor,
    check_gradient,
    check_rows,
    device_of,
    normal,
)

SLACK, FEW = 0.25, 0.02
"""How far outside of their range pixels may lie, and how many may lie farther: both are clamped."""


def check_generator(
    decode: Any,
    latent_dim: int,
    *,
    prior: Literal["normal"] | Callable[[int, torch.Generator], Tensor] | Tensor = "normal",
    size: int | None = None,
    channels: int = 3,
    image_range: Literal["unit", "symmetric"] = "unit",
    together: int = ROWS,
    gradients: bool = False,
    seed: int = 0,
) -> Conformance:
    """Try whether `decode` can serve as a generator: latents (B, D) to images (B, C, H, W), a tensor or an array.

    Args:
        decode: A module, or anything that is called.
        latent_dim: D.
        prior: "normal", a callable (n, torch.Generator) -> (n, D), or latents (N, D).
        size: Side of its images in pixels, where it is to be checked.
        channels: 1 or 3.
        image_range: "unit" for [0, 1], "symmetric" for [-1, 1].
        together: Latents that it gets at a time; 1 for files of a fixed batch.
        gradients: Whether it must pass gradients on.
        seed: Of the latents.

    >>> print(check_generator(nn.Sequential(nn.Linear(4, 192), nn.Sigmoid(), nn.Unflatten(1, (3, 8, 8))), 4))
    Sequential can serve.
    >>> print(check_generator(lambda w: w, 4))
    function lacks 1 thing:
    - it gives (3, 4) for latents (3, 4); needed are images (3, 3, H, W)
    """
    checks = Checks(type(decode).__name__)
    if not callable(decode):
        checks.need(False, "it cannot be called: latents (B, D) go in, images (B, C, H, W) come out")
        return checks.done()
    if image_range not in ("unit", "symmetric"):
        raise ConfigError(f"image_range is 'unit' or 'symmetric', got {image_range!r}.")
    owner = decode if isinstance(decode, nn.Module) else getattr(decode, "__self__", None)
    module = owner if isinstance(owner, nn.Module) else None
    together = min(max(together, 1), ROWS)
    with checks.left_as_it_is(module):
        latents = _latents(checks, prior, latent_dim, seed)
        made = None
        if latents is not None:
            latents = latents.to(device_of(module))
            made = _check_made(checks, decode, latents, channels, together)
        if latents is not None and made is not None:
            height, width = made.shape[-2:]
            is_size = size is None or (height, width) == (size, size)
            checks.need(is_size, f"its images have {height}x{width} px, not {size}")
            _check_range(checks, made, 0.0 if image_range == "unit" else -1.0)
            if gradients:
                check_gradient(checks, decode, latents[:together])
    return checks.done()


def _latents(checks: Checks, prior: Any, width: int, seed: int) -> Tensor | None:
    """Return latents of the prior, (ROWS, D), where it gives any."""
    if isinstance(prior, str):
        if prior != "normal":
            raise ConfigError(f"prior is 'normal', a callable or latents (N, D), got {prior!r}.")
        return normal(ROWS, width, seed)
    if isinstance(prior, Tensor):
        found: Any = prior[:ROWS]
    else:
        found = checks.attempt("the prior", lambda: prior(ROWS, torch.Generator().manual_seed(seed)))
        again = checks.attempt("the prior", lambda: prior(ROWS, torch.Generator().manual_seed(seed)))
        if found is FAILED or again is FAILED:
            return None
        is_seeded = isinstance(found, Tensor) and isinstance(again, Tensor) and are_same(found, again)
        checks.need(
            is_seeded or not isinstance(found, Tensor), "the prior draws from another generator than it is given"
        )
    if not checks.need(isinstance(found, Tensor), f"the prior gives a {type(found).__name__}: it must give a tensor"):
        return None
    shape = tuple(found.shape)
    is_good = checks.need(shape == (ROWS, width), f"the prior gives {shape}; needed are latents ({ROWS}, {width})")
    if is_good:
        is_good = checks.need(
            found.is_floating_point() and bool(torch.isfinite(found).all()),
            "the prior's latents must be finite numbers",
        )
    return found.float() if is_good else None


def _check_made(
    checks: Checks, decode: Callable[[Tensor], Any], latents: Tensor, channels: int, together: int
) -> Tensor | None:
    """Check what comes out, but for its values; return it as float32."""
    kept, told = latents.clone(), f"({together}, {latents.shape[1]})"

    def parts(given: Tensor) -> Tensor:
        return torch.cat([as_tensor(decode(part)) for part in given.split(together)])

    with torch.no_grad():
        first = checks.attempt(f"calling it with latents {told}", lambda: decode(latents[:together]))
        if first is FAILED:
            return None
        if not checks.need(
            isinstance(first, (Tensor, np.ndarray)), f"it gives a {type(first).__name__}, neither a tensor nor an array"
        ):
            return None
        checks.need(torch.equal(latents, kept), "it writes into the latents it is given")
        latents = kept
        shape = tuple(first.shape)
        if not checks.need(
            len(shape) == 4 and shape[:2] == (together, channels),
            f"it gives {shape} for latents {told}; needed are images ({together}, {channels}, H, W)",
        ):
            return None
        found = checks.attempt("calling it with more latents", lambda: parts(latents))
        if found is FAILED:
            return None
        is_number = found.dtype == torch.uint8 or found.is_floating_point()
        if not checks.need(is_number, f"its images are {found.dtype}: needed are floating-point numbers, or uint8"):
            return None
        images: Tensor = found.float() / 255 if found.dtype == torch.uint8 else found.float()
        if not checks.need(bool(torch.isfinite(images).all()), "its images have values that are not finite"):
            return None
        check_rows(checks, "it", lambda given: parts(given) if len(given) > 1 else decode(given), latents, found)
        return images


def _check_range(checks: Checks, images: Tensor, least: float) -> None:
    low, high = float(images.min()), float(images.max())
    far = float(((images < least - SLACK) | (images > 1 + SLACK)).double().mean())
    checks.need(
        far <= FEW,
        f"its images lie in [{low:.3g}, {high:.3g}]: needed is [{least:.0f}, 1] (image_range= is 'unit' for [0, 1], "
        "'symmetric' for [-1, 1])",
    )
    checks.need(
        least == 0 or low < 0 or high > 1, f"its images lie in [{low:.3g}, {high:.3g}]: is image_range='unit' meant?"
    )
