"""Frozen configuration dataclasses, strictly to and from plain JSON, and the presets of MSC tab. S10."""

from __future__ import annotations

from posthoc_inn.config.autoencoder import AutoencoderConfig
from posthoc_inn.config.base import Config
from posthoc_inn.config.parts import (
    LINEAR,
    MAX_DIM,
    PICTURES,
    Activation,
    ConceptConfig,
    ConditionerConfig,
    FitConfig,
    FlowConfig,
    ImageSpec,
    Precision,
    TrainConfig,
)
from posthoc_inn.config.presets import PRESETS, preset, preset_names

__all__ = [
    "LINEAR",
    "PICTURES",
    "MAX_DIM",
    "PRESETS",
    "Activation",
    "AutoencoderConfig",
    "ConceptConfig",
    "ConditionerConfig",
    "Config",
    "FitConfig",
    "FlowConfig",
    "ImageSpec",
    "Precision",
    "TrainConfig",
    "preset",
    "preset_names",
]
