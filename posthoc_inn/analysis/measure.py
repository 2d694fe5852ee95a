"""All that is measured at the end of a fit, as plain data: what `metrics.json` holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from posthoc_inn.analysis.calibration import calibration
from posthoc_inn.analysis.faithfulness import PICTURES, Asked, faithfulness
from posthoc_inn.analysis.image_metrics import measure_image_metrics
from posthoc_inn.analysis.invariance import explained_by_invariances
from posthoc_inn.analysis.likelihood import likelihood
from posthoc_inn.analysis.outside import clipped
from posthoc_inn.analysis.results import Result
from posthoc_inn.analysis.retrieval import retrieval
from posthoc_inn.flows import ConditionalFlow
from posthoc_inn.objectives import drawn, kl_to_standard_normal
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.rows.cache import Cache, unit
from posthoc_inn.training import History

IMAGES = 1000
"""Held-out images that pictures are made for."""
SAMPLES = 8
"""Pictures made for each."""


@dataclass(frozen=True)
class AutoencoderQuality(Result):
    """What the autoencoder loses: no sample has it, since samples are decoded too.

    Attributes:
        error: Mean squared error of held-out reconstructions, images in [-1, 1], at draws of the encoder.
        kl: KL of the encoder to N(0, 1), in nats per image.
        agreement: Share of reconstructions for which the model predicts what it predicts for the image, see
            `Faithfulness`, like the last two.
        agreement_error: Its standard error.
        similarity: Cosine similarity of Φ(reconstruction) to z.
        images: Held-out images used for agreement and similarity.
        image_metrics: Name -> value, standard error and which way is better, of each metric that was asked for.
        label_overlap: Mean Jaccard index of the sets of labels; nan for other predictions.
        output_similarity: Cosine similarity of embeddings; nan for other predictions.
        agreement_interval: Of the agreement, at 95 %; see `Faithfulness`, like the last three.
        agreement_chance: Agreement by chance.
        kappa: Cohen's kappa.
        kappa_error: Its standard error.
    """

    error: float
    kl: float
    agreement: float
    agreement_error: float
    similarity: float
    images: int
    image_metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    label_overlap: float = math.nan
    output_similarity: float = math.nan
    agreement_interval: tuple[float, float] = (math.nan, math.nan)
    agreement_chance: float = math.nan
    kappa: float = math.nan
    kappa_error: float = math.nan


@torch.no_grad()
def autoencoder_quality(
    pipeline: Pipeline,
    held_out: Cache,
    *,
    image_metrics: Sequence[str] = (),
    with_code_noise: bool = False,
    limit: int = 5000,
    seed: int = 0,
) -> AutoencoderQuality:
    """Measure reconstructions of cached held-out images.

    Args:
        pipeline: The fitted parts.
        held_out: Cache with images, z, mean, std, and prediction where predictions are compared.
        image_metrics: Registered image metrics to measure by too.
        with_code_noise: Whether codes have the noise that t was fitted with (`Pipeline.code_noise`), as samples do.
        limit: Images used at the most.
        seed: Seed of the encoder's noise.
    """
    index = held_out.some(limit, seed=seed)
    if pipeline.code_noise is None or with_code_noise:
        mean, std = held_out["mean"].rows(index), held_out["std"].rows(index)
    else:  # cached deviations have the noise in them
        images_of, encode = held_out["images"], pipeline.autoencoder.encode
        own = [encode(unit(images_of.rows(part)).to(pipeline.device)) for part in index.split(PICTURES)]
        mean, std = (torch.cat([pair[k].float().cpu() for pair in own]) for k in (0, 1))
    latents = drawn(mean, std, seed)
    asked, errors = Asked(pipeline, 1), 0.0
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    for part, drawn_latents in zip(index.split(PICTURES), latents.split(PICTURES), strict=True):
        images = pipeline.adapter.from_square(unit(held_out["images"].rows(part)))
        decoded = pipeline.decode(drawn_latents).cpu()
        asked.add(decoded, held_out["z"].rows(part), predictions(held_out, part))
        errors += float((2 * (decoded - images)).square().double().sum())
        if image_metrics:
            kept.append((images, decoded))
    found = asked.result()
    pairs = [torch.cat(side) for side in zip(*kept, strict=True)]
    return AutoencoderQuality(
        error=errors / (len(index) * images[0].numel()),
        kl=float(kl_to_standard_normal(mean, std).mean()),
        agreement=found.agreement,
        agreement_error=found.agreement_error,
        similarity=found.similarity,
        images=len(index),
        image_metrics=measure_image_metrics(image_metrics, *pairs) if image_metrics else {},
        label_overlap=found.label_overlap,
        output_similarity=found.output_similarity,
        agreement_interval=found.agreement_interval,
        agreement_chance=found.agreement_chance,
        kappa=found.kappa,
        kappa_error=found.kappa_error,
    )


@dataclass(frozen=True)
class Resolution(Result):
    """What the resize alone costs: images brought to the autoencoder's size and back, without the autoencoder.

    Attributes:
        image_size: Side of the autoencoder's images, in pixels.
        model_size: Height and width at which the model gets them.
        agreement: Share of them for which the model predicts what it predicts for the image, see `Faithfulness`, like
            those that follow.
        agreement_error: Its standard error.
        similarity: Cosine similarity of their z to the image's.
        similarity_error: Its standard error.
        images: Held-out images.
        label_overlap: Mean Jaccard index of the sets of labels; nan for other predictions.
        output_similarity: Cosine similarity of embeddings; nan for other predictions.
    """

    image_size: int
    model_size: tuple[int, ...]
    agreement: float
    agreement_error: float
    similarity: float
    similarity_error: float
    images: int
    label_overlap: float = math.nan
    output_similarity: float = math.nan


@torch.no_grad()
def resolution(pipeline: Pipeline, held_out: Cache, index: torch.Tensor) -> Resolution | None:
    """Ask the model about cached images at the autoencoder's size; None where they are not cached.

    Args:
        pipeline: The fitted parts.
        held_out: Cache with images (at the autoencoder's size), z, and prediction where predictions are compared.
        index: Rows to ask about.
    """
    if "images" not in held_out:
        return None
    asked = Asked(pipeline, 1)
    for part in index.split(PICTURES):
        shown = pipeline.adapter.from_square(unit(held_out["images"].rows(part)))
        asked.add(shown, held_out["z"].rows(part), predictions(held_out, part))
    found = asked.result()
    return Resolution(
        image_size=pipeline.adapter.image_size,
        model_size=tuple(pipeline.adapter.spec.size or ()),
        agreement=found.agreement,
        agreement_error=found.agreement_error,
        similarity=found.similarity,
        similarity_error=found.similarity_error,
        images=len(index),
        label_overlap=found.label_overlap,
        output_similarity=found.output_similarity,
    )


def _noise_told(pipeline: Pipeline, held_out: Cache, is_drawn: bool, seed: int) -> dict[str, Any]:
    """Return what the noise of codes is, and what it does to reconstructions: samples cannot be better than these."""
    assert pipeline.code_noise is not None
    told = pipeline.code_noise.to_dict()
    if is_drawn:
        return told
    found = autoencoder_quality(pipeline, held_out, with_code_noise=True, seed=seed).to_dict()
    return told | {name: found[name] for name in ("error", "agreement", "agreement_error", "similarity")}


def predictions(cache: Cache, rows: torch.Tensor) -> torch.Tensor | None:
    """Return what is compared of the predictions for these rows, (rows, ...), or None for nothing."""
    return cache["prediction"].rows(rows) if "prediction" in cache else None


def measure(
    pipeline: Pipeline,
    train: Cache,
    held_out: Cache,
    history: History,
    autoencoder_history: History | None,
    *,
    trained: ConditionalFlow | None = None,
    linear: ConditionalFlow | None = None,
    image_metrics: Sequence[str] = (),
    draws: int = 1,
    chosen_by: Cache | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return every figure of a finished fit, as plain data.

    Args:
        pipeline: The fitted parts.
        train: Cached training rows.
        held_out: Cached held-out rows that are measured.
        history: Of t.
        autoencoder_history: Of the autoencoder, where it was trained.
        trained: The t that was trained, like the next two as in `likelihood`.
        linear: The linear t.
        image_metrics: Registered image metrics to measure by too.
        draws: Rows of each training image.
        chosen_by: Held-out rows that chose the weights; the same ones by default.
        seed: Of all draws.
    """
    chosen_by = held_out if chosen_by is None else chosen_by
    is_same = chosen_by is held_out
    every = len(held_out) + (0 if is_same else len(chosen_by))
    rows, is_drawn = min(IMAGES, len(held_out)), "latents" in held_out
    if is_drawn:
        # Each picture can take a second: as many as a tenth of those that were made for the fit.
        rows = min(rows, max(8, (len(train) + every) // (10 * SAMPLES)))
    some = held_out.some(rows, seed=seed)
    z = held_out["z"].rows(some)
    few = held_out.some(500, seed=seed)
    encoded = held_out["mean"].rows(few), held_out["std"].rows(few)
    explained = explained_by_invariances(pipeline, held_out["z"].rows(few), encoded=encoded, seed=seed)
    checked = calibration(pipeline, held_out, seed=seed)
    # A generator's pictures are made at its own size, and resized for nobody.
    resized = None if is_drawn else resolution(pipeline, held_out, some)
    noise = {} if pipeline.code_noise is None else {"code_noise": _noise_told(pipeline, held_out, is_drawn, seed)}
    return {
        **noise,
        "images": {
            "train": len(train),
            "held_out": every,
            "chose_weights": len(chosen_by),
            "measured": len(held_out),
            "are_apart": not is_same,
        },
        "resolution": None if resized is None else resized.to_dict(),
        # A draw is its own reconstruction: there is nothing to measure.
        "autoencoder": None
        if is_drawn
        else autoencoder_quality(pipeline, held_out, image_metrics=image_metrics, seed=seed).to_dict(),
        "likelihood": likelihood(
            pipeline, train, held_out, history, trained=trained, linear=linear, draws=draws, seed=seed
        ).to_dict(),
        "calibration": None if checked is None else checked.to_dict(),
        "faithfulness": faithfulness(pipeline, z, predictions(held_out, some), samples=SAMPLES, seed=seed).to_dict(),
        "retrieval": retrieval(
            train, z, predictions(held_out, some), sample_spread=explained.value, neighbours=SAMPLES, seed=seed
        ).to_dict(),
        "explained_by_invariances": explained.to_dict(),
        "clipped": clipped(pipeline, train, held_out, seed=seed).to_dict(),
        "training": {
            "t": history.to_dict(),
            "autoencoder": autoencoder_history.to_dict() if autoencoder_history is not None else None,
        },
    }
