"""Other people's weights: read safely, loaded, and recognised again."""

from __future__ import annotations

from posthoc_inn.weights.fingerprint import describe_tensors, fingerprint, plain_state
from posthoc_inn.weights.fitting import load_into
from posthoc_inn.weights.reading import infer_num_classes, is_weights_file, load_state, load_weights, seeded_init

__all__ = [
    "describe_tensors",
    "fingerprint",
    "infer_num_classes",
    "is_weights_file",
    "load_into",
    "load_state",
    "load_weights",
    "plain_state",
    "seeded_init",
]
