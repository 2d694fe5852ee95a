"""Figures of a report: each takes `ax` (or makes its own) and returns a Figure; nothing global is touched."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from posthoc_inn.drawing import BLUE, GAP, GRID, INK, ORANGE, RED, SOFT, axes, picture, plain, to_data_uri, to_png
from posthoc_inn.errors import ShapeError

__all__ = [
    "invariance_histogram",
    "likelihood_ruler",
    "sample_grid",
    "to_data_uri",
    "to_png",
    "training_curve",
]


def sample_grid(
    images: Tensor,
    reconstructions: Tensor,
    samples: Tensor,
    *,
    row_labels: Sequence[str] = (),
    sample_labels: Sequence[Sequence[str]] = (),
    ax: Axes | None = None,
) -> Figure:
    """Draw one row an image: the image, its reconstruction, and samples that the layer cannot tell from it.

    Args:
        images: Canonical images (B, C, H, W).
        reconstructions: D(E(x)), (B, C, H, W).
        samples: (B, N, C, H, W).
        row_labels: A text for each row, such as the model's prediction.
        sample_labels: A text for each sample (B, N); where it is not empty, the sample is framed in red.
        ax: Where to draw.

    Raises:
        ShapeError: The numbers of rows differ.
    """
    rows, columns = len(images), samples.shape[1] if samples.ndim == 5 else 0
    if samples.ndim != 5 or len(reconstructions) != rows or len(samples) != rows or not columns:
        raise ShapeError(
            f"A grid takes images and reconstructions (B, C, H, W) and samples (B, N, C, H, W), got "
            f"{tuple(images.shape)}, {tuple(reconstructions.shape)} and {tuple(samples.shape)}."
        )
    label_width = 0.11 * max((len(text) for text in row_labels), default=0) + 0.15 * bool(row_labels)
    step, inch = 1 + GAP, 0.78
    starts = [0.0, step, *(2 * step + 0.25 + k * step for k in range(columns))]
    width, height = starts[-1] + 1 + label_width, rows * step - GAP + 0.5
    figure, ax = axes(ax, width * inch, height * inch)
    for row in range(rows):
        shown = [images[row], reconstructions[row], *samples[row]]
        for column, image in enumerate(shown):
            x, y = starts[column], row * step
            ax.imshow(picture(image), extent=(x, x + 1, y + 1, y), interpolation="nearest", zorder=2)
            text = sample_labels[row][column - 2] if sample_labels and column >= 2 else ""
            if text:
                ax.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor=RED, linewidth=1.8, zorder=3, clip_on=False))
                ax.text(
                    x + 0.96, y + 0.95, text, ha="right", va="bottom", size=6.5, color="white", zorder=4,
                    bbox={"boxstyle": "square,pad=0.18", "facecolor": RED, "edgecolor": "none"},
                )  # fmt: skip
        if row_labels:
            ax.text(-0.14, row * step + 0.5, row_labels[row], ha="right", va="center", size=8, color=INK)
    for x, text in ((0.5, "input"), (step + 0.5, "recon-\nstructed")):
        ax.text(x, -0.12, text, ha="center", va="bottom", size=7.5, color=SOFT, linespacing=0.95)
    middle = (starts[2] + starts[-1] + 1) / 2
    ax.text(middle, -0.12, "samples: to this layer, the same as the input", ha="center", va="bottom", size=7.5,
            color=SOFT)  # fmt: skip
    ax.plot([starts[2] - 0.19] * 2, [-0.1, rows * step - GAP], color=GRID, linewidth=1)
    ax.set(xlim=(-label_width - 0.1, starts[-1] + 1.04), ylim=(rows * step - GAP + 0.04, -0.5))
    ax.set_aspect("equal")
    ax.axis("off")
    return figure


def training_curve(
    history: Mapping[str, Any], *, label: str, levels: Mapping[str, float] | None = None, ax: Axes | None = None
) -> Figure:
    """Draw training and held-out loss over the steps, and mark the step whose weights were kept.

    Args:
        history: What `History.to_dict` returns.
        label: Of the vertical axis, with the unit.
        levels: Name -> height of a horizontal line to compare with.
        ax: Where to draw.
    """
    figure, ax = axes(ax, 4.6, 2.7)
    rows = history["rows"]
    steps = [row["step"] for row in rows]
    marker = "o" if len(rows) < 3 else None
    ax.plot(steps, [row["train"] for row in rows], color=BLUE, label="training", linewidth=1.4, marker=marker)
    ax.plot(steps, [row["held_out"] for row in rows], color=ORANGE, label="held out", linewidth=1.6, marker=marker)
    best = next((row for row in rows if row["step"] == history.get("best_step")), None)
    if best is not None:
        ax.plot([best["step"]], [best["held_out"]], "o", color=ORANGE, markersize=5, label="kept")
    for name, height in (levels or {}).items():
        ax.axhline(height, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
        ax.annotate(name, (1, height), xycoords=("axes fraction", "data"), xytext=(-2, 2), textcoords="offset points",
                    ha="right", va="bottom", size=7.5, color=SOFT)  # fmt: skip
    finite = [row[key] for row in rows for key in ("train", "held_out") if math.isfinite(row[key])]
    if len(rows) >= 5 and finite:
        # The first looks are far off and would flatten the rest.
        late = [row[key] for row in rows[1:] for key in ("train", "held_out") if math.isfinite(row[key])]
        heights = [*late, *(levels or {}).values()]
        margin = 0.08 * (max(heights) - min(heights) or 1.0)
        ax.set_ylim(min(heights) - margin, max(heights) + margin)
    ax.set(xlabel="step", ylabel=label)
    plain(ax)
    ax.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper right")
    return figure


def invariance_histogram(v: Tensor, ax: Axes | None = None) -> Figure:
    """Draw the values of v on held-out images against the density of N(0, 1).

    Args:
        v: Invariances, any shape; all values are taken together.
        ax: Where to draw.
    """
    figure, ax = axes(ax, 4.6, 2.7)
    values = v.detach().float().flatten().cpu().numpy()
    values = values[np.isfinite(values)]
    edges = np.linspace(-5, 5, 81)
    ax.hist(values.clip(-5, 5), bins=edges.tolist(), density=True, color=BLUE, alpha=0.45, label="v, held-out images")
    x = np.linspace(-5, 5, 201)
    ax.plot(x, np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi), color=INK, linewidth=1.4, label="N(0, 1)")
    ax.set(xlabel="v, all dimensions together", ylabel="density", xlim=(-5, 5))
    plain(ax)
    ax.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper right")
    return figure


def likelihood_ruler(likelihood: Mapping[str, Any], ax: Axes | None = None) -> Figure:
    """Draw where t's held-out likelihood lies between N(0, 1) and the encoder's noise floor.

    Args:
        likelihood: What `Likelihood.to_dict` returns.
        ax: Where to draw.
    """
    figure, ax = axes(ax, 9.2, 1.05)
    points = [
        ("noise floor", likelihood["noise_floor"], SOFT, 1),
        ("t, held out", likelihood["held_out"], ORANGE, 1),
        ("t, training", likelihood["train"], BLUE, -1),
        ("N(0, 1)", likelihood["standard_normal"], SOFT, 1),
    ]
    low, high = min(p[1] for p in points), max(p[1] for p in points)
    margin = 0.09 * (high - low or 1.0)
    ax.plot([low, high], [0, 0], color=GRID, linewidth=5, solid_capstyle="round", zorder=1)
    for name, value, color, side in points:
        ax.plot([value], [0], "o", color=color, markersize=9, zorder=2)
        ax.annotate(f"{name}  {value:.1f}", (value, 0), xytext=(0, 9 * side), textcoords="offset points", ha="center",
                    va="bottom" if side > 0 else "top", size=8.5, color=color if color != SOFT else INK)  # fmt: skip
    ax.annotate("better", (low - margin, 0), xytext=(0, -16), textcoords="offset points", size=8, color=SOFT, ha="left")
    ax.set(xlim=(low - margin, high + margin), ylim=(-1, 1))
    ax.axis("off")
    return figure
