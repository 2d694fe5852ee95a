"""See what a trained vision network has learned to see, and what it has learned to ignore."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from posthoc_inn.autoencoders import Draws, GivenAutoencoder, GivenGenerator, judged
    from posthoc_inn.concepts import (
        AttributeSource,
        ConceptModel,
        FolderPairs,
        GivenPairs,
        SketchSource,
        StyleTransfer,
        shared_directions,
    )
    from posthoc_inn.config import AutoencoderConfig, ConceptConfig, FitConfig, ImageSpec, TrainConfig, preset
    from posthoc_inn.errors import (
        BundleError,
        ConfigError,
        DataError,
        DuplicateNameError,
        LayerNotFoundError,
        ModelError,
        ModelTouchedError,
        NotFittedError,
        OutsideWarning,
        PluginError,
        PosthocInnError,
        PosthocInnWarning,
        ShapeError,
        TrainingError,
        UnknownNameError,
    )
    from posthoc_inn.features import LayerExtractor, list_layers, untouched
    from posthoc_inn.fit import FitRequest
    from posthoc_inn.fit.inverter import Inverter, inversion_quality, invert_by_optimization
    from posthoc_inn.interpreter import Interpreter
    from posthoc_inn.plugins.hookspecs import hookimpl
    from posthoc_inn.sweep import layer_sweep, model_sweep, training_sweep
    from posthoc_inn.weights import load_weights

_PUBLIC = {
    "autoencoders": ("Draws", "GivenAutoencoder", "GivenGenerator", "judged"),
    "concepts": (
        "AttributeSource",
        "ConceptModel",
        "FolderPairs",
        "GivenPairs",
        "SketchSource",
        "StyleTransfer",
        "shared_directions",
    ),
    "config": ("AutoencoderConfig", "ConceptConfig", "FitConfig", "ImageSpec", "TrainConfig", "preset"),
    "errors": (
        "BundleError",
        "ConfigError",
        "DataError",
        "DuplicateNameError",
        "LayerNotFoundError",
        "ModelError",
        "ModelTouchedError",
        "NotFittedError",
        "OutsideWarning",
        "PluginError",
        "PosthocInnError",
        "PosthocInnWarning",
        "ShapeError",
        "TrainingError",
        "UnknownNameError",
    ),
    "features": ("LayerExtractor", "list_layers", "untouched"),
    "fit": ("FitRequest",),
    "fit.inverter": ("Inverter", "inversion_quality", "invert_by_optimization"),
    "interpreter": ("Interpreter",),
    "plugins": ("hookimpl",),
    "sweep": ("layer_sweep", "model_sweep", "training_sweep"),
    "weights": ("load_weights",),
}
"""Module -> what users find at the top level."""

# Resolved on first use (PEP 562): importing the package, or asking the command line for help, must not import torch.
_LAZY = {name: f"posthoc_inn.{module}" for module, names in _PUBLIC.items() for name in names}

__all__ = [
    "AttributeSource",
    "AutoencoderConfig",
    "BundleError",
    "ConceptConfig",
    "ConceptModel",
    "ConfigError",
    "DataError",
    "Draws",
    "DuplicateNameError",
    "FitConfig",
    "FitRequest",
    "FolderPairs",
    "GivenAutoencoder",
    "GivenGenerator",
    "GivenPairs",
    "ImageSpec",
    "Interpreter",
    "Inverter",
    "LayerExtractor",
    "LayerNotFoundError",
    "ModelError",
    "ModelTouchedError",
    "NotFittedError",
    "OutsideWarning",
    "PluginError",
    "PosthocInnError",
    "PosthocInnWarning",
    "ShapeError",
    "SketchSource",
    "StyleTransfer",
    "TrainConfig",
    "TrainingError",
    "UnknownNameError",
    "__version__",
    "hookimpl",
    "inversion_quality",
    "invert_by_optimization",
    "judged",
    "layer_sweep",
    "list_layers",
    "load_weights",
    "model_sweep",
    "preset",
    "shared_directions",
    "training_sweep",
    "untouched",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
