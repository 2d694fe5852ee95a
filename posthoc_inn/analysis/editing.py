"""Semantic edits and walks through e: swap, replace, resample (MSC eq. 7), directions (IIN eq. 14), paths (IIN fig. 4).

Everything maps latents (or a layer's z) to latents: decode them with D, or hand them to Ψ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from posthoc_inn.concepts import ConceptModel
from posthoc_inn.errors import ConfigError, ShapeError

Names = str | int | Sequence[str | int]
"""One factor or several, by name or number; 0 and "residual" are the residual."""
Kind = Literal["linear", "spherical"]
"""How two points are joined."""


# ---- edits


def swap(concepts: ConceptModel, x: Tensor, source: Tensor, names: Names) -> Tensor:
    """Return `x` with the named factors of `source` in place of its own (MSC eq. 7).

    Args:
        concepts: e.
        x: Latents, or representations, (B, *shape).
        source: Where the factors come from, row by row (B, *shape), or one row for all (1, *shape).
        names: Which factors.

    Returns:
        Edited latents (B, *shape).

    Raises:
        ShapeError: `source` has neither one row nor as many as `x`, or a shape is not that of e.
        UnknownNameError: There is no such factor.
        ConfigError: `names` is empty.
    """
    columns = factor_columns(concepts, names)
    _check_rows(x, source, "source")
    factors, other = concepts.joined(x), concepts.joined(source)
    factors[..., columns] = other[..., columns].expand(*factors.shape[:-1], -1)
    return concepts.inverse(factors)


def replace(concepts: ConceptModel, x: Tensor, name: str | int, value: Tensor) -> Tensor:
    """Return `x` with a factor set to `value`.

    Args:
        concepts: e.
        x: Latents, or representations, (B, *shape).
        name: Which factor.
        value: Its new value, (width,) for all rows or (B, width).

    Raises:
        ShapeError: `value` has another shape.
        UnknownNameError: There is no such factor.
    """
    part = concepts.part(name)
    factors = concepts.joined(x)
    width = part.stop - part.start
    if value.shape not in ((width,), (len(x), width)):
        raise ShapeError(
            f"A value of {concepts.factor_names[concepts.index(name)]!r} has shape ({width},), or ({len(x)}, {width}) "
            f"with one row an image; got {tuple(value.shape)}."
        )
    factors[:, part] = value.to(factors)
    return concepts.inverse(factors)


def resample(concepts: ConceptModel, x: Tensor, names: Names, n: int, seed: int = 0) -> Tensor:
    """Return `n` versions of each row of `x` whose named factors are drawn anew, all else kept.

    Draws are from N(0, s²), s being the factors' deviations over held-out images (`ConceptModel.deviation`).

    Args:
        concepts: e.
        x: Latents, or representations, (B, *shape).
        names: Which factors.
        n: N, versions of each row.
        seed: Of the draws.

    Returns:
        Edited latents (B, N, *shape).

    Raises:
        ConfigError: `n` is not positive, or `names` is empty.
        UnknownNameError: There is no such factor.
    """
    if n < 1:
        raise ConfigError(f"n must be at least 1, got {n}.")
    columns = factor_columns(concepts, names)
    factors = concepts.joined(x)[:, None].repeat(1, n, 1)
    draws = torch.randn(len(x), n, len(columns), generator=torch.Generator().manual_seed(seed)).to(factors)
    factors[..., columns] = draws * concepts.deviation[columns]
    return concepts.inverse(factors)


# ---- directions and walks


def edited(
    concepts: ConceptModel,
    x: Tensor,
    names: Names,
    *,
    source: Tensor | None = None,
    value: Tensor | None = None,
    n: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Return `x` with a concept changed in one of three ways: `swap`, `replace` or `resample`.

    Args:
        concepts: e.
        x: Latents (B, D).
        names: Which concepts.
        source: Latents to take them from, (B, D) or (1, D).
        value: What the one concept is set to, (width,) or (B, width).
        n: Draws, of the spread that the concept has over held-out images.
        seed: Of the draws.

    Returns:
        (B, D), or (B, n, D) for draws.

    Raises:
        ConfigError: Not exactly one of `source`, `value` and `n` is given.
    """
    if sum(given is not None for given in (source, value, n)) != 1:
        raise ConfigError(
            "Give exactly one of source= (images to take the concept from), value= (of the factor) and n= (random "
            "draws)."
        )
    if source is not None:
        return swap(concepts, x, source, names)
    if value is not None:
        if not isinstance(names, str):
            raise ConfigError("value= sets one concept; name one.")
        return replace(concepts, x, names, value)
    return resample(concepts, x, names, n or 0, seed)


def direction(concepts: ConceptModel, with_x: Tensor, without_x: Tensor, name: str | int | None = None) -> Tensor:
    """Return the mean of e over examples with an attribute minus the mean over examples without it.

    IIN eq. 14 prints x where e(E(x)) is meant, and the opposite sign; this one points towards the attribute.

    Args:
        concepts: e.
        with_x: Latents of images that have it, (A, *shape).
        without_x: Latents of images that do not, (B, *shape).
        name: Keep this factor's values alone and set the others to zero; None keeps all.

    Returns:
        A direction in the space of the factors side by side, (D,).

    Raises:
        ShapeError: A set is empty, or its shape is not that of e.
        UnknownNameError: There is no such factor.
    """
    for given, text in ((with_x, "with_x"), (without_x, "without_x")):
        if given.ndim != 1 + len(concepts.shape) or not len(given):
            raise ShapeError(
                f"{text} must be latents (B, *{concepts.shape}) of at least one image, got {tuple(given.shape)}."
            )
    found = concepts.joined(with_x).double().mean(0) - concepts.joined(without_x).double().mean(0)
    if name is not None:
        kept = torch.zeros_like(found)
        kept[concepts.part(name)] = found[concepts.part(name)]
        found = kept
    return found.float()


def walk(
    concepts: ConceptModel,
    a: Tensor,
    b: Tensor,
    steps: int,
    kind: Kind = "linear",
    names: Names | None = None,
) -> Tensor:
    """Return paths from `a` to `b` that are straight, or great circles, in the space of the factors (IIN fig. 4).

    Args:
        concepts: e.
        a: Where paths start, latents or representations (B, *shape), or one row.
        b: Where they go, (B, *shape), or one row.
        steps: Points on a path, both ends included, at least 2.
        kind: "linear", or "spherical": the direction turns evenly and the length goes evenly from one to the
            other. (Anti)parallel vectors, between which there is no one great circle, are joined linearly.
        names: Walk in these factors alone, the others staying those of `a`; None walks in all. Spherical walks turn
            the values of all these factors as one vector.

    Returns:
        Latents (B, steps, *shape). The first is `a` itself; the last is `b` itself, or with `names` `swap(a, b)`.

    Raises:
        ShapeError: Numbers of rows differ, or a shape is not that of e.
        ConfigError: `steps` is below 2, `kind` is unknown, or `names` is empty.
        UnknownNameError: There is no such factor.
    """
    _check_steps(steps)
    if kind not in get_args(Kind):
        raise ConfigError(f"kind must be one of {', '.join(map(repr, get_args(Kind)))}, got {kind!r}.")
    columns = factor_columns(concepts, concepts.factor_names if names is None else names)
    rows = _common_rows(a, b)
    a, b = (t.expand(rows, *t.shape[1:]) for t in (a, b))
    start, stop = concepts.joined(a), concepts.joined(b)
    time = torch.linspace(0, 1, steps, dtype=torch.float64, device=start.device)
    join = linear if kind == "linear" else spherical
    factors = start[:, None].repeat(1, steps, 1)
    factors[..., columns] = join(start[:, columns].double(), stop[:, columns].double(), time).to(factors)
    path = concepts.inverse(factors)
    # The ends are known; e⁻¹(e(x)) would be x up to rounding only.
    path[:, 0] = a.to(path)
    path[:, -1] = b.to(path) if names is None else swap(concepts, a, b, names).to(path)
    return path


def walk_along(concepts: ConceptModel, x: Tensor, direction: Tensor, amounts: Sequence[float] | Tensor) -> Tensor:
    """Return `x` moved along a direction in the space of the factors.

    Args:
        concepts: e.
        x: Latents, or representations, (B, *shape).
        direction: (D,), as `direction` returns it.
        amounts: How far, in lengths of `direction`: (A,); 0 is `x`.

    Returns:
        Latents (B, A, *shape).

    Raises:
        ShapeError: `direction` is not (D,), or `amounts` is no row of numbers.
    """
    far = torch.as_tensor(amounts, dtype=torch.float32)
    dim = sum(concepts.factor_dims)
    if direction.shape != (dim,) or far.ndim != 1 or not len(far):
        raise ShapeError(
            f"A walk takes a direction ({dim},) and amounts (A,), got {tuple(direction.shape)} and {tuple(far.shape)}."
        )
    factors = concepts.joined(x)
    return concepts.inverse(factors[:, None] + far.to(factors)[:, None] * direction.to(factors))


def latent_walk(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """Return straight paths in the space of the latents themselves, to compare with (IIN fig. 4, bottom left).

    Args:
        a: Where paths start, (B, ...), or one row.
        b: Where they go, (B, ...), or one row.
        steps: Points on a path, both ends included, at least 2.

    Returns:
        Latents (B, steps, ...).

    Raises:
        ShapeError: Numbers of rows differ.
        ConfigError: `steps` is below 2.
    """
    _check_steps(steps)
    rows = _common_rows(a, b)
    a, b = (t.expand(rows, *t.shape[1:]) for t in (a, b))
    time = torch.linspace(0, 1, steps, dtype=torch.float64, device=a.device)
    path = linear(a.flatten(1).double(), b.flatten(1).double(), time).reshape(rows, steps, *a.shape[1:]).to(a)
    path[:, 0], path[:, -1] = a, b
    return path


def linear(a: Tensor, b: Tensor, time: Tensor) -> Tensor:
    """Return straight lines (B, T, D) between `a` and `b` (B, D) at times (T,) in [0, 1]."""
    return torch.lerp(a[:, None], b[:, None], time[:, None])


def spherical(a: Tensor, b: Tensor, time: Tensor) -> Tensor:
    """Return great circles (B, T, D) between `a` and `b` (B, D) at times (T,), the length changing linearly."""
    length_a, length_b = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    tiny = torch.finfo(a.dtype).tiny
    unit_a, unit_b = a / length_a.clamp_min(tiny), b / length_b.clamp_min(tiny)
    # Both halves of this angle are exact near 0 and π, where the arc cosine of the dot product is not.
    angle = 2 * torch.atan2((unit_a - unit_b).norm(dim=1), (unit_a + unit_b).norm(dim=1))
    sine = angle.sin()
    is_arc = (sine > 1e-6) & (length_a[:, 0] > 0) & (length_b[:, 0] > 0)
    safe = torch.where(is_arc, sine, torch.ones_like(sine))[:, None]
    left = ((1 - time) * angle[:, None]).sin() / safe
    right = (time * angle[:, None]).sin() / safe
    turned = left[..., None] * unit_a[:, None] + right[..., None] * unit_b[:, None]
    length = torch.lerp(length_a, length_b, time)
    return torch.where(is_arc[:, None, None], turned * length[..., None], linear(a, b, time))


# ---- small helpers


def listed_factors(concepts: ConceptModel, names: Names | None) -> list[int]:
    """Return the numbers of the named factors, in the order named and without repeats; None names all.

    Raises:
        UnknownNameError: There is no such factor.
        ConfigError: `names` is empty.
    """
    chosen = concepts.factor_names if names is None else [names] if isinstance(names, (str, int)) else list(names)
    if not chosen:
        raise ConfigError(f"Name at least one factor of {', '.join(concepts.factor_names)}.")
    return list(dict.fromkeys(concepts.index(name) for name in chosen))


def factor_columns(concepts: ConceptModel, names: Names) -> list[int]:
    """Return which of the D values of the factors side by side belong to the named ones, in their order in e.

    Raises:
        UnknownNameError: There is no such factor.
        ConfigError: `names` is empty.
    """
    parts = [concepts.part(number) for number in sorted(listed_factors(concepts, names))]
    return [column for part in parts for column in range(part.start, part.stop)]


def _check_rows(x: Tensor, other: Tensor, text: str) -> None:
    if x.ndim == 0 or other.ndim != x.ndim or len(other) not in (1, len(x)):
        raise ShapeError(
            f"{text} must have one row, or as many as the {len(x) if x.ndim else 0} of x; got shapes "
            f"{tuple(other.shape)} and {tuple(x.shape)}."
        )


def _common_rows(a: Tensor, b: Tensor) -> int:
    if a.ndim < 2 or a.shape[1:] != b.shape[1:] or (len(a) != len(b) and 1 not in (len(a), len(b))):
        raise ShapeError(
            f"Walks join as many rows as they start from, or one: got {tuple(a.shape)} and {tuple(b.shape)}."
        )
    return max(len(a), len(b))


def _check_steps(steps: int) -> None:
    if steps < 2:
        raise ConfigError(f"steps must be at least 2, both ends included; got {steps}.")
