"""Lightning Fabric. It imports matplotlib, which some backends of the surroundings would stop."""

from __future__ import annotations

from posthoc_inn.drawing.library import any_backend

with any_backend():
    from lightning_fabric import Fabric

__all__ = ["Fabric"]
