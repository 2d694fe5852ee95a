"""Data sets that need no download: torch data sets of canonical images and labels."""

from __future__ import annotations

from posthoc_inn.datasets.color_digits import ColorDigits, ColorizedDigits, blend, colorize

__all__ = ["ColorDigits", "ColorizedDigits", "blend", "colorize"]
