"""Figures of a report: each takes `ax` (or makes its own) and returns a Figure; nothing global is touched."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from posthoc_inn.drawing import BLUE, GRID, INK, ORANGE, SOFT, axes, level, plain, to_data_uri, to_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "invariance_histogram",
    "likelihood_ruler",
    "to_data_uri",
    "to_png",
    "training_curve",
]


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
        level(ax, height, name)
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
        ax.annotate(
            f"{name}  {value:.1f}",
            (value, 0),
            xytext=(0, 9 * side),
            textcoords="offset points",
            ha="center",
            va="bottom" if side > 0 else "top",
            size=8.5,
            color=color if color != SOFT else INK,
        )
    ax.annotate("better", (low - margin, 0), xytext=(0, -16), textcoords="offset points", size=8, color=SOFT, ha="left")
    ax.set(xlim=(low - margin, high + margin), ylim=(-1, 1))
    ax.axis("off")
    return figure
