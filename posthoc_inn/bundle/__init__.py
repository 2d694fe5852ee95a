"""Saves and loads fitted parts as a directory of safetensors and JSON; reads no pickle, and names no code to import."""

from posthoc_inn.bundle.load import load_bundle, load_model_state
from posthoc_inn.bundle.members import BUNDLE_FILE, CARD_FILE, MEMBERS, METRICS_FILE, MODEL_FILE, WEIGHTS_FILE
from posthoc_inn.bundle.record import FORMAT_VERSION, Bundle
from posthoc_inn.bundle.save import save_bundle

__all__ = [
    "BUNDLE_FILE",
    "CARD_FILE",
    "FORMAT_VERSION",
    "MEMBERS",
    "METRICS_FILE",
    "MODEL_FILE",
    "WEIGHTS_FILE",
    "Bundle",
    "load_bundle",
    "load_model_state",
    "save_bundle",
]
