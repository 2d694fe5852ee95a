"""Where between an image and its samples something is lost: at the resize, in the autoencoder, or by t."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posthoc_inn.report.findings.judging import percent

LOST = 0.001
"""What a resize must cost to be worth a word."""


def steps(metrics: Mapping[str, Any], figure: str) -> str:
    """Return how a figure falls from step to step, in a sentence or two; "" where only samples were measured.

    Args:
        metrics: What `metrics.json` holds.
        figure: "agreement", "similarity" or "output_similarity".
    """
    resized, rebuilt, found = (
        (metrics.get(part) or {}).get(figure) for part in ("resolution", "autoencoder", "faithfulness")
    )
    if rebuilt is None or found is None:
        return ""
    text = " Step by step:"
    if resized is not None and resized < 1 - LOST:
        size = (metrics.get("resolution") or {}).get("image_size")
        text += f" the image brought to the autoencoder's {size} pixels and back has {_value(figure, resized)},"
    text += f" its reconstruction {_value(figure, rebuilt)}, samples {_value(figure, found)}."
    nearest = (metrics.get("retrieval") or {}).get(figure)
    text += "" if nearest is None else f" The nearest training images have {_value(figure, nearest)}."
    return f"{text} What is lost before the samples is not t's doing."


def _value(figure: str, value: float) -> str:
    return percent(value) if figure == "agreement" else f"{value:.3f}"
