"""How far pictures are from their images, by the image metrics that are registered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from posthoc_inn.errors import DataError, PluginError, PosthocInnError, ShapeError
from posthoc_inn.plugins import get_plugin_manager

CHUNK = 128
"""Pairs that a metric gets at a time: memory is bounded whatever their number."""


def check_image_metrics(names: Sequence[str], size: tuple[int, int] | None = None) -> None:
    """Check that these metrics are registered and take pictures of this size; builds none of them.

    `build_image_metrics` also finds out whether they are to be had: weights may be missing.

    Args:
        names: Registered image metrics.
        size: Height and width of the pictures in pixels; None where it is not known yet.

    Raises:
        UnknownNameError: Nobody registers a name.
        DataError: The pictures are smaller than a metric takes.
    """
    registry = get_plugin_manager().image_metrics
    for name in names:
        least = int(registry.get(name).metadata.get("min_size") or 1)
        if size is not None and min(size) < least:
            raise DataError(
                f"The image metric {name!r} takes pictures of at least {least} x {least} pixels, got "
                f"{size[0]} x {size[1]}. Leave it out, or fit with larger pictures."
            )


def build_image_metrics(names: Sequence[str], size: tuple[int, int]) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Return these metrics by name, built: what they need is there.

    Args:
        names: Registered image metrics.
        size: Height and width of the pictures in pixels.

    Raises:
        UnknownNameError: Nobody registers a name.
        DataError: The pictures are smaller than a metric takes, or it lacks its weights.
        PluginError: A metric cannot be built.
    """
    check_image_metrics(names, size)
    manager = get_plugin_manager()
    return {name: manager.build(manager.image_metrics, name) for name in names}


@torch.no_grad()
def measure_image_metrics(names: Sequence[str], images: Tensor, pictures: Tensor) -> dict[str, dict[str, Any]]:
    """Measure how far pictures are from their images.

    Args:
        names: Registered image metrics.
        images: (B, C, H, W) in [0, 1].
        pictures: What became of each, (B, C, H, W) in [0, 1].

    Returns:
        Name -> "value", the mean over the images; "standard_error" of this mean, None for a single image;
        "higher_is_better", as the metric was registered.

    Raises:
        UnknownNameError: Nobody registers a name.
        ShapeError: The two are no batches of the same shape.
        DataError: The pictures are smaller than a metric takes.
        PluginError: A metric cannot be built, fails, or returns something else than one finite number a pair.
    """
    if images.ndim != 4 or images.shape != pictures.shape or not len(images):
        raise ShapeError(
            f"Image metrics compare two batches (B, C, H, W) of one shape, got {tuple(images.shape)} and "
            f"{tuple(pictures.shape)}."
        )
    registry = get_plugin_manager().image_metrics
    found = {}
    for name, metric in build_image_metrics(names, (images.shape[-2], images.shape[-1])).items():
        entry = registry.get(name)
        values = _values(metric, f"The image metric {name!r} of {entry.distribution}", images, pictures)
        error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
        found[name] = {
            "value": float(values.mean()),
            "standard_error": error,
            "higher_is_better": bool(entry.metadata.get("higher_is_better", False)),
        }
    return found


def _values(metric: Callable[[Tensor, Tensor], Tensor], who: str, images: Tensor, pictures: Tensor) -> Tensor:
    """Return what a metric says of each pair, (B,) in float64, checked: the metric is somebody else's code."""
    found = []
    for a, b in zip(images.split(CHUNK), pictures.split(CHUNK), strict=True):
        try:
            values = metric(a, b)
        except PosthocInnError:
            raise
        except Exception as error:
            raise PluginError(f"{who} fails over pictures {tuple(a.shape)}: {type(error).__name__}: {error}") from error
        if not isinstance(values, Tensor) or values.shape != (len(a),):
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise PluginError(f"{who} must return one number a pair, a tensor ({len(a)},), got {got}.")
        if values.is_complex() or not bool(torch.isfinite(values).all()):
            bad = "complex numbers" if values.is_complex() else f"{_count_bad(values)} of {len(a)} that are not finite"
            raise PluginError(f"{who} must return finite real numbers, got {bad}.")
        found.append(values.double().cpu())
    return torch.cat(found)


def _count_bad(values: Tensor) -> int:
    return int((~torch.isfinite(values)).sum())
