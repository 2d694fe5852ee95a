"""Figures of a report: each takes `ax` (or makes its own) and returns a Figure; nothing global is touched."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats
from torch import Tensor

from posthoc_inn.drawing import BLUE, GRID, INK, ORANGE, SOFT, axes, level, new_figure, plain, to_data_uri, to_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "calibration_panels",
    "invariance_histogram",
    "likelihood_ladder",
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


RUNGS = {
    "standard_normal": "N(0, 1): knows nothing",
    "gaussian": "one Gaussian for all images",
    "linear": "linear t",
    "other_z": "t with another image's z",
    "noise_floor": "noise floor of the encoder",
}
"""Rung of the ladder of likelihoods -> its name in the figure."""


def likelihood_ladder(likelihood: Mapping[str, Any], ax: Axes | None = None) -> Figure:
    """Draw what a held-out latent costs under t beside simpler answers, and the encoder's noise floor: a line each.

    Args:
        likelihood: What `Likelihood.to_dict` returns; those of older bundles have no ladder, and fewer lines.
        ax: Where to draw.
    """
    known = {r["name"]: r["nats"] for r in likelihood.get("ladder") or ()}
    known = known or {name: likelihood.get(name) for name in RUNGS}
    rows = [(label, known[name], SOFT) for name, label in RUNGS.items() if known.get(name) is not None]
    rows += [("t, training images", likelihood["train"], BLUE), ("t, held-out images", likelihood["held_out"], ORANGE)]
    rows.sort(key=lambda row: row[1])
    figure, ax = axes(ax, 7.2, 0.34 * len(rows) + 0.7)
    low = rows[0][1] - 0.04 * (rows[-1][1] - rows[0][1] or 1.0)
    for height, (_, value, color) in enumerate(rows):
        ax.plot([low, value], [height, height], color=GRID, linewidth=3, solid_capstyle="round", zorder=1)
        ax.plot([value], [height], "o", color=color, markersize=8, zorder=2)
        ink = INK if color == SOFT else color
        ax.annotate(f"{value:.1f}", (value, height), xytext=(8, 0), textcoords="offset points", va="center", size=8.5)
        ax.texts[-1].set_color(ink)
    ax.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    ax.set(xlabel="nats an image: further left is better", xlim=(low, rows[-1][1] + 0.09 * (rows[-1][1] - low)))
    plain(ax)
    ax.tick_params(axis="y", labelsize=8.5, labelcolor=INK)
    return figure


CALIBRATION = (
    "Left: held-out images by how far out their v lies, in 20 parts that an exact t fills evenly (dashed; 95 % "
    "of its bars lie in the grey band). High bars on the right: held-out images lie farther out than samples, t "
    "is too sure. Right: how often a latent's value lies between the least and the largest of 19 samples for "
    "its z, a dot a dimension, lowest first; an exact t has 90 %, and 95 % of its dots lie in the band. What to "
    "conclude: where bars or dots leave the band, samples vary too little or too much. What not to conclude: "
    "that t is right where they do not; v may still tell of z, which the checks above look at."
)
"""Caption of `calibration_panels`."""


def calibration_panels(calibration: Mapping[str, Any]) -> Figure:
    """Draw how far out v of held-out images lies, and how often t's intervals hold, by dimension.

    Args:
        calibration: What `Calibration.to_dict` returns.
    """
    figure = new_figure(9.2, 2.8)
    left, right = figure.subplots(1, 2)
    bins = calibration["norms"]
    count, share = sum(bins), 1 / len(bins)
    low, high = (stats.binom.ppf(q, count, share) / count for q in (0.025, 0.975))
    left.bar(np.arange(len(bins)) + 0.5, [k / count for k in bins], width=0.9, color=BLUE, alpha=0.6)
    left.axhspan(low, high, color=SOFT, alpha=0.22, linewidth=0)
    left.axhline(share, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
    left.set(
        title="How far out v lies",
        xlabel="chi-squared probability of ‖v‖²",
        ylabel="share of held-out images",
        xlim=(0, len(bins)),
    )
    left.set_xticks([0, len(bins) / 2, len(bins)], ["0: near the middle", "0.5", "far out: 1"])
    each = sorted(calibration["coverage_by_dimension"])
    images = calibration["coverage_images"]
    low, high = (stats.binom.ppf(q, images, 0.9) / images for q in (0.025, 0.975))
    right.plot(np.arange(1, len(each) + 1), each, "o", color=ORANGE, markersize=3.5)
    right.axhspan(low, high, color=SOFT, alpha=0.22, linewidth=0)
    right.axhline(0.9, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
    right.set(title="Coverage of 90 % intervals", xlabel="dimensions of z_bar, sorted", ylabel="held-out images inside")
    for ax in (left, right):
        ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
        ax.title.set(size=10, color=INK)
        plain(ax)
    left.set_ylim(0, None)
    return figure
