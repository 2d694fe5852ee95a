"""What all figures share: colours, axes, grids of pictures, and PNG files."""

from __future__ import annotations

from posthoc_inn.drawing.annotated import MAP, Column, annotated_grid, wrapped
from posthoc_inn.drawing.axes import (
    BLUE,
    GAP,
    GRID,
    INK,
    ORANGE,
    PALETTE,
    RED,
    SOFT,
    axes,
    new_figure,
    picture,
    picture_grid,
    plain,
    to_data_uri,
    to_png,
)

__all__ = [
    "BLUE",
    "GAP",
    "GRID",
    "INK",
    "MAP",
    "ORANGE",
    "PALETTE",
    "RED",
    "SOFT",
    "Column",
    "annotated_grid",
    "axes",
    "new_figure",
    "picture",
    "picture_grid",
    "plain",
    "to_data_uri",
    "to_png",
    "wrapped",
]
