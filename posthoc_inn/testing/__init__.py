"""For authors of plugins and tests: tiny models of every awkward kind, and what an autoencoder or generator lacks."""

from __future__ import annotations

from posthoc_inn.testing.autoencoders import check_autoencoder
from posthoc_inn.testing.checks import Conformance
from posthoc_inn.testing.generators import check_generator
from posthoc_inn.testing.models import TINY_MODELS, TinyModel, tiny_model

__all__ = ["TINY_MODELS", "Conformance", "TinyModel", "check_autoencoder", "check_generator", "tiny_model"]
