"""Draws the one figure of the method, for light and for dark pages: `python docs/method_figure.py [FOLDER]`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch


@dataclass(frozen=True)
class Theme:
    """Colours of a figure: of text and arrows, of your network, of what is trained, and of what samples go back by."""

    ink: str
    yours: str
    trained: str
    back: str


THEMES = {
    "light": Theme(ink="#1a1a1a", yours="#e3e3e3", trained="#cfe2f7", back="#b3541e"),
    "dark": Theme(ink="#ececec", yours="#4a4a4a", trained="#1f4a73", back="#f0a070"),
}

VALUES = {
    "image x": (0.9, 3.0),
    "z": (4.6, 4.6),
    "prediction": (8.6, 4.6),
    "code z̄": (4.6, 1.9),
    "v": (8.6, 2.5),
    "picture": (0.9, 1.1),
    "factors": (8.6, 0.5),
}
"""What is computed, and where it stands."""

PARTS = {
    "your network\nto the layer": (2.75, 4.6, "yours"),
    "your network\nafter it": (6.6, 4.6, "yours"),
    "encoder": (2.75, 2.6, "trained"),
    "decoder": (2.75, 1.1, "trained"),
    "t": (6.6, 2.5, "trained"),
    "e": (6.6, 0.5, "trained"),
}
"""Networks: where they stand, and whose they are."""


def draw(theme: Theme) -> Figure:
    """Return the figure on a transparent ground."""
    figure = Figure(figsize=(9.6, 5.2))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 9.6), ylim=(0, 5.2))
    axes.set_axis_off()
    figure.patch.set_alpha(0)

    def arrow(start: tuple[float, float], end: tuple[float, float], back: bool = False, bend: float = 0) -> None:
        color, line = (theme.back, (0, (4, 2.5))) if back else (theme.ink, "solid")
        style = f"arc3,rad={bend}"
        patch = FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, color=color, lw=1.6, linestyle=line)
        patch.set_connectionstyle(style)
        axes.add_patch(patch)

    for text, (x, y, whose) in PARTS.items():
        half = 0.78 if len(text) > 2 else 0.5
        box = FancyBboxPatch((x - half, y - 0.34), 2 * half, 0.68, boxstyle="round,pad=0,rounding_size=0.12")
        box.set(facecolor=getattr(theme, whose), edgecolor=theme.ink, linewidth=1.0)
        axes.add_patch(box)
        axes.text(x, y, text, ha="center", va="center", color=theme.ink, size=11 if len(text) > 2 else 15)
    for text, (x, y) in VALUES.items():
        axes.text(x, y, text, ha="center", va="center", color=theme.ink, size=13, weight="bold")
    for text, x, y in (
        ("what the layer keeps", 4.6, 4.94),
        ("what it has lost:", 8.6, 2.16),
        ("noise, N(0, 1)", 8.6, 1.9),
        ("concepts by name,", 8.6, 0.16 + 0.02),
        ("a sample, or an edit", 0.9, 0.76),
    ):
        axes.text(x, y, text.rstrip(","), ha="center", va="center", color=theme.ink, size=9.5, style="italic")

    arrow((0.95, 3.25), (1.92, 4.45))  # x to the network
    arrow((3.58, 4.6), (4.42, 4.6))
    arrow((4.8, 4.6), (5.77, 4.6))
    arrow((7.43, 4.6), (7.92, 4.6))
    arrow((1.42, 2.95), (1.92, 2.72))  # x to the encoder
    arrow((3.58, 2.45), (4.12, 2.13))
    arrow((5.1, 2.02), (6.05, 2.4))  # code to t
    arrow((7.15, 2.6), (8.4, 2.6))
    arrow((4.7, 4.38), (6.3, 2.9))  # z conditions t
    axes.text(5.82, 3.75, "given", ha="left", va="center", color=theme.ink, size=9.5, style="italic")
    arrow((5.0, 1.66), (6.05, 0.66))  # code to e
    arrow((7.15, 0.6), (7.95, 0.6))
    arrow((8.4, 2.38), (7.15, 2.38), back=True)
    arrow((6.05, 2.2), (5.14, 1.84), back=True)
    arrow((7.95, 0.4), (7.15, 0.4), back=True)
    arrow((6.05, 0.42), (4.84, 1.62), back=True)
    arrow((4.1, 1.74), (3.58, 1.3), back=True)
    arrow((1.92, 1.1), (1.4, 1.1), back=True)
    return figure


def write(folder: Path) -> list[Path]:
    """Write one SVG for each theme; the same bytes each time, and no font of the machine's."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with mpl.rc_context({"svg.hashsalt": "posthoc_inn", "svg.fonttype": "path", "font.family": "DejaVu Sans"}):
        for name, theme in THEMES.items():
            paths.append(folder / f"method-{name}.svg")
            draw(theme).savefig(paths[-1], metadata={"Date": None, "Creator": None})
    return paths


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images")
