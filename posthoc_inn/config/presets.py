"""Configurations of whole fits by name, those of MSC tab. S10 among them."""

from __future__ import annotations

from typing import Any

from posthoc_inn.config.parts import Activation, ConceptConfig, FitConfig, FlowConfig, TrainConfig
from posthoc_inn.errors import ConfigError, suggest

_AUTOENCODER_TRAINING = TrainConfig(
    steps=12000, batch_size=64, lr=3e-3, weight_decay=0.0, warmup=0.02, clip=1.0, eval_every=1000, patience=0
)
_FLOW_TRAINING = TrainConfig(steps=7000, batch_size=512, lr=6e-3, weight_decay=0.3, eval_every=500, patience=4)

# Over maps small convolutions get furthest in a given time: each weight sees every place of every image.
_MAP_FLOW = FlowConfig(dim=64, context_dim=128, kind="conv", blocks=8, width=32, depth=1, dropout=0.05)
_MAP_FLOW_TRAINING = TrainConfig(steps=15_000, batch_size=128, lr=4e-3, weight_decay=0.01, eval_every=500, patience=4)
# Photographs: without it the model sees something else in most samples.
_MAP_FAITHFUL = 0.25

_CONCEPTS = ConceptConfig()


def _preset(
    name: str,
    *,
    dim: int = 64,
    blocks: int,
    width: int,
    depth: int = 2,
    separate_nets: bool = False,
    context_dim: int = 128,
    autoencoder: TrainConfig = _AUTOENCODER_TRAINING,
    training: TrainConfig = _FLOW_TRAINING,
    dropout: float = 0.0,
    autoencoder_width: int = 32,
    activation: Activation = "silu",
    kind: str = "affine",
    concepts: ConceptConfig = _CONCEPTS,
    **more: Any,
) -> FitConfig:
    flow = FlowConfig(
        dim=dim,
        context_dim=context_dim,
        kind=kind,
        blocks=blocks,
        width=width,
        depth=depth,
        separate_nets=separate_nets,
        dropout=dropout,
        activation=activation,
    )
    return FitConfig(
        preset=name,
        latent_dim=dim,
        autoencoder_width=autoencoder_width,
        context_dim=context_dim,
        conditioner_width=max(256, context_dim),
        conditioner_depth=1,
        flow=flow,
        autoencoder_training=autoencoder,
        flow_training=training,
        concepts=concepts,
        **more,
    )


# The papers train for very long on GPUs; their presets keep the shapes of MSC tab. S10 and a usual recipe.
_PAPER_TRAINING = TrainConfig(steps=100_000, batch_size=16, lr=1e-4, optimizer="adam", weight_decay=0.0, patience=10)
_PAPER: dict[str, Any] = {
    "separate_nets": True,
    "training": _PAPER_TRAINING,
    "activation": "leaky_relu",
    "pictures": "never",
    "concepts": ConceptConfig(learn_rho=False, dropout=0.05),
}
PRESETS: dict[str, FitConfig] = {
    p.preset: p
    for p in (
        _preset(
            "default",
            blocks=8,
            width=256,
            dropout=0.05,
            latent="auto",
            map_flow=_MAP_FLOW,
            map_flow_training=_MAP_FLOW_TRAINING,
            map_faithful=_MAP_FAITHFUL,
        ),
        _preset(
            "quick",
            blocks=8,
            width=192,
            dropout=0.1,
            autoencoder=_AUTOENCODER_TRAINING.replace(steps=3000, eval_every=500),
            training=_FLOW_TRAINING.replace(steps=900, eval_every=100),
            latent="auto",
            map_flow=_MAP_FLOW,
            map_flow_training=_MAP_FLOW_TRAINING.replace(steps=2500, eval_every=250),
            map_faithful=_MAP_FAITHFUL,
        ),
        # Few pairs: t starts where the linear one ends, and stops before it knows its rows by heart.
        _preset(
            "few",
            kind="linear+affine",
            blocks=4,
            width=128,
            dropout=0.3,
            training=_FLOW_TRAINING.replace(steps=2000, batch_size=256, lr=1e-3, eval_every=50, patience=8),
        ),
        _preset("linear", kind="linear", blocks=1, width=1),
        # The papers' h_d counts what lies between first and last hidden layer: 2 there is a depth of 3 here.
        _preset("paper-comparison", dim=128, blocks=20, width=1024, depth=3, **_PAPER),
        _preset("paper-facenet", dim=128, blocks=20, width=512, depth=3, autoencoder_width=64, **_PAPER),
        _preset("paper-texture", dim=268, blocks=20, width=1024, depth=3, autoencoder_width=64, **_PAPER),
    )
}
"""Name -> configuration, in the order in which they are listed."""


def preset(name: str) -> FitConfig:
    """Return the preset called `name`.

    Raises:
        ConfigError: There is none; the message lists the nearest names.
    """
    if name not in PRESETS:
        raise ConfigError(f"There is no preset {name!r}. {suggest(name, PRESETS)}")
    return PRESETS[name]


def preset_names() -> list[str]:
    """Return the names of all presets."""
    return list(PRESETS)
