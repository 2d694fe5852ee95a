"""What tests and the counting script both begin with."""

from __future__ import annotations

from pathlib import Path

from cli_helpers import QUICK
from PIL import Image

SIZES = (20_000, 60_000, 200_000, 400_000, 700_000)
"""Bytes of disks that are too small, at different stages."""


def quick_options(folder: Path) -> tuple[str, ...]:
    """Write forty pictures of two classes, and return the options of a fit on them that takes a second."""
    for name, base in (("nought", 60), ("one", 160)):
        (folder / name).mkdir()
        for number in range(20):
            picture = Image.effect_noise((28, 28), 20).point(lambda v, b=base: min(255, v + b - 100)).convert("RGB")
            picture.save(folder / name / f"{number:02}.png")
    return (*QUICK, "--data", str(folder))
