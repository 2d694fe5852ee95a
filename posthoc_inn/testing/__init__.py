"""For authors of plugins and tests: tiny models of every awkward kind."""

from __future__ import annotations

from posthoc_inn.testing.models import TINY_MODELS, TinyModel, tiny_model

__all__ = ["TINY_MODELS", "TinyModel", "tiny_model"]
