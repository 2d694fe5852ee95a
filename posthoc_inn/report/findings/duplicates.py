"""Held-out images that are also in training, in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posthoc_inn.report.findings.judging import Finding, judge, percent

SHARE = (0.0, 0.01)
"""Share of the held-out images that are copies: none is good, up to one in a hundred hardly moves a figure."""


def duplicates(metrics: Mapping[str, Any]) -> list[Finding]:
    """Return how many held-out images are copies of training images."""
    found = metrics.get("duplicates") or {}
    if found.get("exact") is None or not found.get("compared"):
        return []
    exact, near = found["exact"], found.get("near")
    share = (exact + (near or 0)) / found["compared"]
    meaning = (
        f"Of {found['compared']:,} held-out images, beside {found['train']:,} training images: {exact:,} have the same "
        "pixels as one of them"
    )
    if near is None:
        meaning += "; there are too few images to look for near copies."
    else:
        meaning += f", and {near:,} are far nearer to one, by their latents, than images are to each other otherwise."
    return [
        Finding(
            "Held-out images",
            "Also in training",
            percent(share),
            meaning,
            judge(share, SHARE, low_is_good=True),
            "Figures on held-out images are too good: remove copies, or hold out images that have none in training "
            "(held_out=).",
        )
    ]
