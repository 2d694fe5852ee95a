"""Reaching a layer of somebody else's model: names, Φ and Ψ, and the guard that nothing was touched."""

from __future__ import annotations

from posthoc_inn.features.extractor import LayerExtractor, Probe
from posthoc_inn.features.guard import Snapshot, snapshot, untouched
from posthoc_inn.features.layers import LayerInfo, list_layers, resolve_layer
from posthoc_inn.features.outputs import is_classification

__all__ = [
    "LayerExtractor",
    "LayerInfo",
    "Probe",
    "Snapshot",
    "is_classification",
    "list_layers",
    "resolve_layer",
    "snapshot",
    "untouched",
]
