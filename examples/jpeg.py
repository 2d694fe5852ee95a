"""Figures as JPEG files: photographs as PNG are several times larger."""

from __future__ import annotations

import io

from matplotlib.figure import Figure
from PIL import Image

from posthoc_inn.drawing import to_png


def to_jpeg(figure: Figure, *, quality: int = 88) -> bytes:
    """Return a figure as a JPEG file."""
    out = io.BytesIO()
    with Image.open(io.BytesIO(to_png(figure))) as image:
        image.convert("RGB").save(out, format="JPEG", quality=quality)
    return out.getvalue()
