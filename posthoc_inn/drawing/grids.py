"""The one grid of pictures: columns side by side, each with text above, below and between, and frames in red."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from posthoc_inn.drawing.axes import GRID, INK, RED, SOFT, axes, picture
from posthoc_inn.drawing.library import matplotlib
from posthoc_inn.drawing.text import FEW, LETTERS, LINES, cleaned
from posthoc_inn.errors import ShapeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GAP = 0.1
"""Space between pictures, as a share of a picture's side, which is the unit of all that follows."""
WIDE = 0.25
"""What a wide gap adds to that."""
LETTER = 0.11
"""Width of a letter of a row's label."""
LINE = 0.147
"""Height of a line of text, in inches."""
MAP = "magma"
"""Colours of maps."""
SAMPLES = "samples: to this layer, nearly the same as the input"
"""Heading of samples."""


@dataclass(frozen=True)
class Column:
    """One column of a grid.

    Attributes:
        pictures: Canonical images (R, C, H, W), or maps (R, H, W); one that is all NaN leaves its place empty.
        heading: Text above; line breaks are kept.
        labels: A text below each picture.
        marked: Which labels are red.
        corners: A text in each picture's corner; a picture where it is not empty gets a red frame.
        footer: Text below the column; line breaks are kept.
        gap: Whether a wider space is left before it.
        rule: Whether a line stands in that space.
        span: Number of columns, this one and those after it, that the heading stands over.
    """

    pictures: Tensor
    heading: str = ""
    labels: Sequence[str] = ()
    marked: Sequence[bool] = ()
    corners: Sequence[str] = ()
    footer: str = ""
    gap: bool = False
    rule: bool = False
    span: int = 1


def columns_of(pictures: Tensor, *, headings: Sequence[str] = (), gaps: Sequence[int] = ()) -> list[Column]:
    """Return the columns of a table of pictures.

    Args:
        pictures: Canonical images (R, N, C, H, W), R rows of N; one that is all NaN leaves its place empty.
        headings: A text for each column, or for the first ones.
        gaps: Columns before which a wider space is left.

    Raises:
        ShapeError: `pictures` is not (R, N, C, H, W).
    """
    if pictures.ndim != 5 or 0 in pictures.shape:
        raise ShapeError(f"A grid takes pictures (R, N, C, H, W), got {tuple(pictures.shape)}.")
    above = [*headings, *[""] * pictures.shape[1]]
    return [Column(pictures[:, n], above[n], gap=n in gaps) for n in range(pictures.shape[1])]


def sample_columns(
    images: Tensor, reconstructions: Tensor, samples: Tensor, corners: Sequence[Sequence[str]] = ()
) -> list[Column]:
    """Return the columns of an image a row: the image, its reconstruction, and samples with the same z.

    Args:
        images: Canonical images (B, C, H, W).
        reconstructions: D(E(x)), (B, C, H, W).
        samples: (B, N, C, H, W).
        corners: A text for each sample, B rows of N; where it is not empty, the sample is framed in red.

    Raises:
        ShapeError: The numbers of rows differ, or there is no sample.
    """
    rows = {len(images), len(reconstructions), len(samples)}
    if samples.ndim != 5 or 0 in samples.shape or len(rows) > 1:
        raise ShapeError(
            f"A grid takes images and reconstructions (B, C, H, W) and samples (B, N, C, H, W), got "
            f"{tuple(images.shape)}, {tuple(reconstructions.shape)} and {tuple(samples.shape)}."
        )
    count = samples.shape[1]
    texts = [tuple(row[k] for row in corners) for k in range(count)]
    first = Column(samples[:, 0], SAMPLES, corners=texts[0], gap=True, rule=True, span=count)
    others = [Column(samples[:, k], corners=texts[k]) for k in range(1, count)]
    return [Column(images, "input"), Column(reconstructions, "recon-\nstructed"), first, *others]


class _Places:
    """Where the parts of a grid stand; a picture's shorter side is 1, and y points down."""

    def __init__(self, columns: Sequence[Column], row_labels: Sequence[str], note: str, inch: float) -> None:
        self.inch, line = inch, LINE / inch
        self.rows = len(columns[0].pictures)
        shapes = [sides_of(column.pictures) for column in columns]
        self.wide, self.high = max(wide for wide, _ in shapes), max(high for _, high in shapes)
        self.step = self.high + GAP + line * any(column.labels for column in columns)
        across = self.wide + GAP
        self.starts = [k * across + WIDE * sum(c.gap for c in columns[: k + 1]) for k in range(len(columns))]
        self.above = 0.08 + line * _lines(column.heading for column in columns)
        footers = _lines(column.footer for column in columns)
        self.note = line * (footers + 0.5) if footers else 0.0
        self.under = self.note + (line * (_lines([note]) + 0.5) if note else 0.0)
        letters = max((min(len(text), LETTERS) for label in row_labels for text in label.split("\n")), default=0)
        self.left = LETTER * letters + 0.15 * bool(row_labels)
        self.bottom = self.rows * self.step - GAP
        around = [line for text in (note, *(c.heading for c in columns)) for line in text.split("\n")]
        beside = [cleaned(text, FEW, 1) for c in columns for text in (*c.labels, *c.corners, c.footer)]
        self.least = 0.6 * LETTER * min(LETTERS, max(map(len, around + beside)))

    @property
    def size(self) -> tuple[float, float]:
        """Of the figure, in inches."""
        wide, high = (
            max(self.starts[-1] + self.wide + 0.14, self.least) + self.left,
            self.bottom + 0.04 + self.above + self.under,
        )
        return wide * self.inch, high * self.inch

    @property
    def limits(self) -> dict[str, tuple[float, float]]:
        """Of the axes."""
        x = -self.left - 0.1, self.starts[-1] + self.wide + 0.04
        return {"xlim": x, "ylim": (self.bottom + 0.04 + self.under, -self.above)}


def sides_of(pictures: Tensor) -> tuple[float, float]:
    """Return width and height at which pictures (..., H, W) are drawn: true to their ratio, the shorter side 1.

    >>> import torch
    >>> sides_of(torch.zeros(3, 1, 64, 128))
    (2.0, 1.0)
    """
    height, width = pictures.shape[-2:]
    short = max(1, min(height, width))
    return width / short, height / short


def _lines(texts: Iterable[str]) -> int:
    return max(min(text.count("\n"), LINES) + 1 if text else 0 for text in texts)


def grid(
    columns: Sequence[Column],
    *,
    row_labels: Sequence[str] = (),
    note: str = "",
    limit: float = 1.0,
    inch: float = 0.78,
    heading_color: str = SOFT,
    ax: Axes | None = None,
) -> Figure:
    """Draw columns of pictures side by side.

    Args:
        columns: At least one, all with as many rows.
        row_labels: A text for each row, to its left; line breaks are kept.
        note: Text below all; line breaks are kept.
        limit: Value of a map that has the lightest colour; 0 has the darkest.
        inch: Shorter side of a picture, in inches; with `ax`, what text is laid out for.
        heading_color: Of the headings.
        ax: Where to draw.

    Raises:
        ShapeError: There is no column or no row, or columns differ in their rows.
    """
    if len({len(column.pictures) for column in columns}) != 1 or not len(columns[0].pictures):
        raise ShapeError(f"A grid takes columns with as many rows, got {[len(c.pictures) for c in columns]}.")
    places = _Places(columns, row_labels, note, inch)
    figure, ax = axes(ax, *places.size)
    for k, column in enumerate(columns):
        x, last = places.starts[k], places.starts[min(k + column.span, len(columns)) - 1]
        for row in range(places.rows):
            _draw_cell(ax, column, row, (x, row * places.step, places.wide, places.high), limit)
        around: dict[str, Any] = {"ha": "center", "size": 7.5, "linespacing": 0.95}
        if column.heading:
            heading = cleaned(column.heading, FEW * (1 + column.span))
            ax.text((x + last + places.wide) / 2, -0.07, heading, va="bottom", color=heading_color, **around)
        if column.footer:
            ax.text(
                x + places.wide / 2, places.bottom + 0.06, cleaned(column.footer, FEW), va="top", color=INK, **around
            )
        if column.rule:
            ax.plot([x - (GAP + WIDE) / 2] * 2, [-0.1, places.bottom], color=GRID, linewidth=1)
    for row, text in enumerate(row_labels):
        ax.text(
            -0.14,
            row * places.step + places.high / 2,
            cleaned(text, LETTERS, 4),
            ha="right",
            va="center",
            size=8,
            color=INK,
        )
    if note:
        where = places.bottom + 0.08 + places.note
        ax.text(0, where, cleaned(note), ha="left", va="top", size=7.2, color=SOFT, linespacing=1.0)
    ax.set(**places.limits)
    ax.set_aspect("equal")
    ax.axis("off")
    return figure


def _draw_cell(ax: Axes, column: Column, row: int, cell: tuple[float, float, float, float], limit: float) -> None:
    """Draw a picture in the middle of `cell` (left, top, width, height), its label and its frame."""
    image, (wide, high) = column.pictures[row], sides_of(column.pictures)
    x, y = cell[0] + (cell[2] - wide) / 2, cell[1] + (cell[3] - high) / 2
    if bool(image.isnan().all()):
        return
    where = (x, x + wide, y + high, y)
    if image.ndim == 2:
        values = image.cpu().numpy()
        ax.imshow(values, extent=where, interpolation="nearest", cmap=MAP, vmin=0, vmax=limit, zorder=2)
    else:
        ax.imshow(picture(image), extent=where, interpolation="nearest", zorder=2)
    if column.labels:
        color = RED if column.marked and column.marked[row] else SOFT
        ax.text(
            x + wide / 2,
            y + high + 0.02,
            cleaned(column.labels[row], FEW, 1),
            ha="center",
            va="top",
            size=6.8,
            color=color,
        )
    if column.corners and column.corners[row]:
        frame = matplotlib("patches").Rectangle((x, y), wide, high, fill=False, edgecolor=RED, linewidth=1.8, zorder=3)
        frame.set_clip_on(False)
        ax.add_patch(frame)
        box = {"boxstyle": "square,pad=0.18", "facecolor": RED, "edgecolor": "none"}
        style: dict[str, Any] = {"ha": "right", "va": "bottom", "size": 6.5, "color": "white", "zorder": 4, "bbox": box}
        ax.text(x + wide - 0.04, y + high - 0.05, cleaned(column.corners[row], FEW, 1), **style)
