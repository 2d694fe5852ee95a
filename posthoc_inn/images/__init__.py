"""Canonical images, what networks want instead, and the many shapes in which users keep their data."""

from __future__ import annotations

from posthoc_inn.images.adapter import InputAdapter
from posthoc_inn.images.batches import Batch, BatchSource
from posthoc_inn.images.image_files import (
    ImageFiles,
    find_image_files,
    load_image,
    load_image_files,
    pil_to_tensor,
    stack_image_files,
)
from posthoc_inn.images.normalization import Normalization, recognize_normalization
from posthoc_inn.images.numbering import STREAM
from posthoc_inn.images.spec import (
    apply_spec,
    fit_canonical,
    match_channels,
    resize,
    undo_spec_normalization,
)
from posthoc_inn.images.splitting import has_length, positions, some_of, some_places, split

__all__ = [
    "STREAM",
    "Batch",
    "BatchSource",
    "ImageFiles",
    "InputAdapter",
    "Normalization",
    "apply_spec",
    "find_image_files",
    "fit_canonical",
    "has_length",
    "load_image",
    "load_image_files",
    "match_channels",
    "pil_to_tensor",
    "positions",
    "recognize_normalization",
    "resize",
    "some_of",
    "some_places",
    "split",
    "stack_image_files",
    "undo_spec_normalization",
]
