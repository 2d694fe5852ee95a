"""What all figures share: colours, axes, the grid of pictures, and PNG files."""

from __future__ import annotations

from posthoc_inn.drawing.axes import (
    BLUE,
    GRID,
    INK,
    ORANGE,
    PALETTE,
    RED,
    SOFT,
    axes,
    level,
    new_figure,
    picture,
    plain,
    to_data_uri,
    to_png,
)
from posthoc_inn.drawing.grids import MAP, Column, columns_of, grid, sample_columns
from posthoc_inn.drawing.text import as_label, shortened, wrapped

__all__ = [
    "BLUE",
    "GRID",
    "INK",
    "MAP",
    "ORANGE",
    "PALETTE",
    "RED",
    "SOFT",
    "Column",
    "as_label",
    "axes",
    "columns_of",
    "grid",
    "level",
    "new_figure",
    "picture",
    "plain",
    "sample_columns",
    "shortened",
    "to_data_uri",
    "to_png",
    "wrapped",
]
