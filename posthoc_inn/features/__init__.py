"""Reaching a layer of somebody else's model: names, Φ and Ψ, and the guard that nothing was touched."""

from __future__ import annotations

from posthoc_inn.features.extractor import LayerExtractor
from posthoc_inn.features.guard import Snapshot, snapshot, untouched
from posthoc_inn.features.layers import LayerInfo, list_layers, resolve_layer
from posthoc_inn.features.outputs import PredictionKind, is_classification
from posthoc_inn.features.probe import Probe

__all__ = [
    "LayerExtractor",
    "LayerInfo",
    "PredictionKind",
    "Probe",
    "Snapshot",
    "is_classification",
    "list_layers",
    "resolve_layer",
    "snapshot",
    "untouched",
]
