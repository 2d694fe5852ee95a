"""Reaching a layer of somebody else's model: names, Φ and Ψ, and the guard that nothing was touched."""

from __future__ import annotations

from posthoc_inn.features.extractor import LayerExtractor, Probe
from posthoc_inn.features.guard import Snapshot, snapshot, untouched
from posthoc_inn.features.layers import LayerInfo, list_layers, resolve_layer

__all__ = [
    "LayerExtractor",
    "LayerInfo",
    "Probe",
    "Snapshot",
    "list_layers",
    "resolve_layer",
    "snapshot",
    "untouched",
]
