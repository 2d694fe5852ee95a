"""A table of pictures and maps, each with a line of text below it: what figures of several layers are made of."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from posthoc_inn.drawing.axes import GAP, INK, RED, SOFT, axes, picture

LINE = 0.17
"""Height of a line of text, as a share of a picture's side."""
MAP = "magma"
"""Colours of maps."""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        pictures: Canonical images (R, C, H, W), or maps (R, H, W); a row that is all NaN leaves its place empty.
        heading: Text above; line breaks are kept.
        labels: A text below each picture.
        marked: Which labels are red.
        footer: Text below the column; line breaks are kept.
        gap: Whether a wider space is left before it.
    """

    pictures: Tensor
    heading: str = ""
    labels: Sequence[str] = ()
    marked: Sequence[bool] = ()
    footer: str = ""
    gap: bool = False


def wrapped(layer: str, width: int = 14) -> str:
    """Return a layer's dotted name on as many lines as it takes.

    >>> print(wrapped("features.denseblock3.denselayer24"))
    features.
    denseblock3.
    denselayer24
    """
    return textwrap.fill(layer.replace(".", ". "), width).replace(". ", ".")


def annotated_grid(
    columns: Sequence[Column],
    *,
    row_labels: Sequence[str] = (),
    note: str = "",
    limit: float = 1.0,
    inch: float = 0.86,
    ax: Axes | None = None,
) -> Figure:
    """Draw columns of pictures side by side.

    Args:
        columns: All with as many rows.
        row_labels: A text for each row, to its left.
        note: Text below all; line breaks are kept.
        limit: Value of a map that has the lightest colour; 0 has the darkest.
        inch: Side of a picture, in inches.
        ax: Where to draw.
    """
    rows = len(columns[0].pictures)
    below = LINE * any(column.labels for column in columns)
    step = 1 + GAP + below
    starts = [k * (1 + GAP) + 0.25 * sum(c.gap for c in columns[: k + 1]) for k in range(len(columns))]
    above = 0.08 + LINE * max(column.heading.count("\n") + 1 if column.heading else 0 for column in columns)
    under = LINE * max(column.footer.count("\n") + 1.5 if column.footer else 0 for column in columns)
    footers, under = under, under + LINE * (note.count("\n") + 1.5 if note else 0)
    left = 0.11 * max((len(line) for text in row_labels for line in text.split("\n")), default=0)
    left += 0.15 * bool(row_labels)
    bottom = rows * step - GAP
    figure, ax = axes(ax, (starts[-1] + 1.14 + left) * inch, (bottom + 0.04 + above + under) * inch)
    for x, column in zip(starts, columns, strict=True):
        for row in range(rows):
            y, image = row * step, column.pictures[row]
            if bool(image.isnan().all()):
                continue
            where = (x, x + 1, y + 1, y)
            if image.ndim == 2:
                ax.imshow(image.cpu().numpy(), extent=where, interpolation="nearest", cmap=MAP, vmin=0, vmax=limit)
            else:
                ax.imshow(picture(image), extent=where, interpolation="nearest")
            if column.labels:
                is_marked = bool(column.marked) and column.marked[row]
                ax.text(
                    x + 0.5, y + 1.02, column.labels[row], ha="center", va="top", size=6.8,
                    color=RED if is_marked else SOFT,
                )  # fmt: skip
        ax.text(x + 0.5, -0.06, column.heading, ha="center", va="bottom", size=7.5, color=INK, linespacing=0.95)
        ax.text(x + 0.5, bottom + 0.06, column.footer, ha="center", va="top", size=7.5, color=INK, linespacing=0.95)
    for row, text in enumerate(row_labels):
        ax.text(-0.14, row * step + 0.5, text, ha="right", va="center", size=8, color=INK)
    ax.text(0, bottom + 0.08 + footers, note, ha="left", va="top", size=7.2, color=SOFT, linespacing=1.0)
    ax.set(xlim=(-left - 0.1, starts[-1] + 1.04), ylim=(bottom + 0.04 + under, -above))
    ax.set_aspect("equal")
    ax.axis("off")
    return figure
