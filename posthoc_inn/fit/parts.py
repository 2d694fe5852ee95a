"""What a fit works with once everything is opened: sources, model, autoencoder, t, and where they run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from posthoc_inn.autoencoders import Autoencoder
from posthoc_inn.concepts import ConceptModel
from posthoc_inn.config import AutoencoderConfig, ConditionerConfig, FitConfig
from posthoc_inn.features import LayerExtractor, Probe
from posthoc_inn.features.outputs import Recognised
from posthoc_inn.fit.binding import BoundConcepts, ConceptRequest
from posthoc_inn.fit.concepts import ConceptFit
from posthoc_inn.fit.metric import Distance, make_metric
from posthoc_inn.flows import ConditionalFlow, coupling_of, set_compute_dtype
from posthoc_inn.images import BatchSource, InputAdapter
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.rows.cache import Cache
from posthoc_inn.rows.code_noise import CodeNoise
from posthoc_inn.training import History

REDUCED = 64
"""Channels that H brings a map to first, where it has more: a 3 × 3 convolution of a thousand takes most of a step."""


@dataclass(frozen=True)
class Asked:
    """How t is trained further by what the model sees of its samples.

    Attributes:
        samples: Samples that the model is asked about in a step.
        steps: How many steps.
    """

    samples: int
    steps: int


@dataclass(frozen=True)
class Parts:
    """What a fit works with.

    Attributes:
        extractor: Φ and Ψ.
        adapter: Between the user's tensors, pictures and model inputs.
        probe: What one batch told of the layer.
        autoencoder: E and D.
        autoencoder_is_fitted: Whether they need no training.
        flow: t.
        config: Sizes and steps.
        data: Training images.
        held_out: Held-out images.
        device: Where everything runs.
        precision: Of the matrix products in training.
        concepts: What e is to learn; None for no e.
        prediction: What the model's prediction is; None before that was looked at.
        code_noise: Noise that codes got besides the encoder's own; None for none, and before the images were encoded.
        trained_by: The configuration that says by which image metric the autoencoder is trained; None where it is not.
        faithful: How t is trained further by what the model sees of its samples; None where it is not.
        tries_pictures: Whether t starts from the picture in z only if that proves to be there.
    """

    extractor: LayerExtractor
    adapter: InputAdapter
    probe: Probe
    autoencoder: Autoencoder
    autoencoder_is_fitted: bool
    flow: ConditionalFlow
    config: FitConfig
    data: BatchSource
    held_out: BatchSource
    device: torch.device
    precision: Literal["32", "bf16"]
    concepts: ConceptRequest | None
    prediction: Recognised | None = None
    trained_by: AutoencoderConfig | None = None
    code_noise: CodeNoise | None = None
    tries_pictures: bool = False
    faithful: Asked | None = None

    def metric(self) -> Distance | None:
        """Return the perceptual distance that the autoencoder is trained by, of the model's weights as they are now."""
        if self.trained_by is None or self.autoencoder_is_fitted:
            return None
        return make_metric(self.trained_by, self.extractor, self.adapter, self.device)

    @property
    def learns_concepts(self) -> bool:
        """Whether t will work on an e that this fit trains."""
        return self.config.flow_on_concepts and self.concepts is not None and self.concepts.space == "z_bar"

    def interaction_weight(self, flow: ConditionalFlow) -> float:
        """Return the weight of the interaction in t's loss: none where `flow` does not work on e's factors."""
        return self.config.interaction_weight if flow.base is not None else 0.0

    def set_precision(self, flow: ConditionalFlow) -> None:
        """Let t compute in the precision of the fit, in place; not e, whose rounding t could do nothing about."""
        for part in (flow.flow, flow.conditioner):
            set_compute_dtype(part, torch.bfloat16 if self.precision == "bf16" else None)

    def pipeline(self) -> Pipeline:
        """Return the parts joined."""
        known = self.extractor, self.adapter, self.autoencoder, self.flow, self.device
        return Pipeline(*known, code_noise=self.code_noise)


@dataclass
class FitResult:
    """What a fit leaves behind.

    Attributes:
        autoencoder: E and D.
        flow: t.
        train: Cached training rows.
        selection: Cached held-out rows that chose weights, ridge and whether t is the linear one.
        held_out: Those that are measured: others, where there are enough (`part_held_out`).
        autoencoder_history: None when the autoencoder was given.
        flow_history: Curve of t.
        concepts: e, its curve and the concepts' scores, where there are concepts.
        trained: The t that was trained, which is `flow` unless the linear one stands in for it.
        linear: The linear t for the same rows.
        refits: The t of each further training with another seed, or the linear one where that was worse.
        seconds: Seconds of each stage.
        threads: CPU threads of each stage.
        bound: The concepts over cached rows, where there are concepts.
        extra: Cached rows of a concept source's own images, or None.
        every_held_out: All cached held-out rows, those that chose and those that are measured.
        faithful_history: Curve of the training of t by what the model sees of its samples; None where there was none.
    """

    autoencoder: Autoencoder
    flow: ConditionalFlow
    train: Cache
    selection: Cache
    held_out: Cache
    autoencoder_history: History | None
    flow_history: History
    concepts: ConceptFit | None
    trained: ConditionalFlow
    linear: ConditionalFlow
    refits: tuple[ConditionalFlow, ...]
    seconds: dict[str, float]
    threads: dict[str, int]
    bound: BoundConcepts | None
    extra: Cache | None
    every_held_out: Cache
    faithful_history: History | None = None


def make_flow(
    config: FitConfig,
    z_shape: tuple[int, ...],
    concept_model: ConceptModel | None,
    latent_shape: tuple[int, ...] = (),
    picture_shape: tuple[int, ...] = (),
) -> ConditionalFlow:
    """Return an untrained t for z of shape (B, *z_shape), on the factors of a trained e where there is one.

    Where the code is a map, `latent_shape` (C, h, w), the couplings see places, and z has places, the context has
    places too. Of a kind that starts from the picture in z, that is one of `picture_shape` (C, S, S).

    Raises:
        ConfigError: There are no places in z to find a picture at.
        UnknownNameError: Nobody registers the coupling that `config` names.
        PluginError: It comes with a plugin that is broken.
    """
    shape, coupling = config.flow, coupling_of(config.flow)
    conditioner = ConditionerConfig(
        z_shape=z_shape,
        context_dim=config.context_dim,
        width=config.conditioner_width,
        depth=config.conditioner_depth,
        dropout=shape.dropout,
        reduced=REDUCED,
        picture_shape=picture_shape if shape.is_pictures_first else (),
        seed=shape.seed,
    )
    if len(latent_shape) == 3:
        shape = shape.replace(latent_shape=latent_shape)
        if getattr(coupling, "keeps_places", False) and conditioner.grid is not None and config.context_channels:
            size, channels = latent_shape[1:], config.context_channels
            context_dim = config.context_dim + channels * math.prod(size)
            conditioner = conditioner.replace(context_dim=context_dim, map_channels=channels, map_size=size)
            shape = shape.replace(context_dim=context_dim, context_channels=channels)
    flow = ConditionalFlow(shape, conditioner, coupling=coupling)
    if concept_model is not None and config.flow_on_concepts:
        flow.set_base(concept_model.flow)
    return flow


def checkpoint_of(directory: Path | None, stage: str) -> Path | None:
    """Return the file of a stage's checkpoints in a run's directory."""
    return None if directory is None else directory / "checkpoints" / f"{stage}.safetensors"
