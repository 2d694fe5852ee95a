"""What all figures share: colours, axes, pictures, and PNG files. Nothing global of matplotlib is touched."""

from __future__ import annotations

import base64
import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from posthoc_inn.drawing.library import matplotlib
from posthoc_inn.errors import ShapeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, GRID = "#1f2430", "#6b7280", "#e5e7eb"
BLUE, ORANGE, RED = "#2f6fb3", "#d9822b", "#c23b3b"


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches, with a canvas of its own."""
    figure: Figure = matplotlib("figure").Figure(figsize=(width, height), layout="constrained")
    matplotlib("backends.backend_agg").FigureCanvasAgg(figure)
    return figure


def axes(ax: Axes | None, width: float, height: float) -> tuple[Figure, Axes]:
    """Return `ax` and its figure, or new ones of a size in inches."""
    if ax is not None:
        parent = ax.get_figure()
        if parent is None:
            raise ShapeError("The given axes belong to no figure.")
        return parent.figure, ax  # the whole figure, of a subfigure too
    figure = new_figure(width, height)
    return figure, figure.add_subplot()


def plain(ax: Axes) -> None:
    """Give `ax` thin axes and a faint grid, in place."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(SOFT)
    ax.tick_params(colors=SOFT, labelsize=8)
    ax.xaxis.label.set(color=SOFT, size=9)
    ax.yaxis.label.set(color=SOFT, size=9)
    ax.grid(True, color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)


def level(ax: Axes, height: float, name: str) -> None:
    """Draw a dashed line at a height to compare with, and its name above its right end."""
    ax.axhline(height, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
    ax.annotate(
        name,
        (1, height),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 2),
        textcoords="offset points",
        ha="right",
        va="bottom",
        size=7.5,
        color=SOFT,
    )


def picture(image: Tensor) -> np.ndarray[Any, Any]:
    """Return (H, W, 3) in [0, 1] for a canonical image (C, H, W)."""
    array: np.ndarray[Any, Any] = image.detach().float().clamp(0, 1).cpu().permute(1, 2, 0).numpy()
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array


PALETTE = (BLUE, ORANGE, "#3d8b5f", "#8b5fb0", RED, "#4aa3b5", "#a08a3c", "#7a7f8a")
"""Colours of several things, in their order."""


def to_png(figure: Figure, dpi: int = 150) -> bytes:
    """Return the figure as a PNG file, the same bytes for the same figure (no date inside)."""
    try:
        return _png(figure, dpi)
    except ValueError:
        # A plugin's figure may hold anybody's names as they are, and one of them be no mathematics.
        for text in figure.findobj(matplotlib("text").Text):
            text.set_parse_math(False)
        return _png(figure, dpi)


def _png(figure: Figure, dpi: int) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A box stands for a letter that the font lacks: a warning for each, in each figure, would hide all others.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None}, facecolor="white")
    return buffer.getvalue()


def to_data_uri(figure: Figure, dpi: int = 150) -> str:
    """Return the figure as a data URI that stands alone in an HTML file."""
    return "data:image/png;base64," + base64.b64encode(to_png(figure, dpi)).decode("ascii")
