"""What is measured at the end of a fit, on held-out images, and the few of them that are kept."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posthoc_inn import analysis
from posthoc_inn.concepts import ConceptModel
from posthoc_inn.errors import DataError
from posthoc_inn.files import plain
from posthoc_inn.fit.binding import ConceptRequest, over_held_out
from posthoc_inn.fit.pair_shares import shares_of_fit
from posthoc_inn.fit.parts import FitResult
from posthoc_inn.fit.stages import Fit
from posthoc_inn.images import BatchSource
from posthoc_inn.objectives import drawn
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.rows.cache import Cache
from posthoc_inn.rows.part import CachePart
from posthoc_inn.rows.reader import LATENTS

RELEVANCE_IMAGES = 1000
"""Held-out images that the concepts' relevance is measured on."""
EXAMPLES = 100
"""Held-out images that are kept for the report: as many as its exchange of concepts takes."""
HISTOGRAM = 1000
"""Held-out images whose v is kept, for its histogram."""


@dataclass(frozen=True)
class Examples:
    """What of the held-out images outlives a fit.

    Attributes:
        images: The user's tensors, (B, C, H, W).
        v: Invariances of up to ten times as many images, (N, D), at a draw of the encoder.
    """

    images: Tensor
    v: Tensor


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        metrics: Plain data, ready for JSON.
        relevance: Of the concepts, where there are any.
        pair_shares: By pairs, where e was trained in this fit.
        examples: What is kept of the held-out images.
    """

    metrics: dict[str, Any]
    relevance: analysis.ConceptRelevance | None
    pair_shares: analysis.PairShares | None
    examples: Examples


@torch.no_grad()
def measure_fit(fit: Fit, result: FitResult, concept_model: ConceptModel | None, *, seed: int) -> Measured:
    """Measure the parts that a fit has trained.

    Args:
        fit: The fit, which was run.
        result: What it returned.
        concept_model: e, trained in this fit or given.
        seed: Of all draws.
    """
    parts = fit.parts
    pipeline = parts.pipeline()
    metrics = analysis.measure(
        pipeline,
        result.train,
        result.held_out,
        result.flow_history,
        result.autoencoder_history,
        trained=result.trained,
        linear=result.linear,
        image_metrics=fit.request.image_metrics,
        draws=fit.request.draws,
        chosen_by=result.selection,
        seed=seed,
    )
    relevance, shares, notes = None, None, list(fit.notes)
    if LATENTS not in result.train:  # no two draws of a generator are the same
        kept = dict.fromkeys((result.selection, result.held_out))
        copies = analysis.duplicates(result.train, *kept, draws=fit.request.draws, seed=seed)
        metrics["duplicates"] = copies.to_dict()
        if copies.share:
            notes.append(_of_copies(copies))
            fit.reporter.note(f"Note: {notes[-1]}")
    if result.refits:
        others = (dataclasses.replace(pipeline, flow=flow) for flow in result.refits)
        metrics["refits"] = analysis.refits(metrics, others, result.held_out, seed=seed).to_dict()
    if concept_model is not None and concept_model.space == "z_bar":
        some = result.held_out.some(RELEVANCE_IMAGES, seed=seed)
        relevance = analysis.concept_relevance(pipeline, concept_model, result.held_out["z"].rows(some), seed=seed)
        encoded = result.held_out["mean"].rows(some), result.held_out["std"].rows(some)
        ceilings = analysis.concept_ceilings(concept_model, encoded, relevance, seed=seed)
        metrics["concepts"] = {
            "names": list(concept_model.names),
            "sizes": list(concept_model.factor_dims),
            "relevance": relevance.to_dict(),
            "ceilings": [ceiling.to_dict() for ceiling in ceilings],
        }
        if result.concepts is not None:
            metrics["concepts"]["scores"] = result.concepts.scores
        shares = _pair_shares(pipeline, concept_model, parts.concepts, result, notes, seed=seed)
        metrics["concepts"]["pair_shares"] = None if shares is None else shares.to_dict()
    if result.concepts is not None:
        metrics["training"]["e"] = result.concepts.history.to_dict()
    model, kind = parts.extractor.model, parts.extractor.kind
    # A generator's pictures would all be made again.
    is_costly = parts.held_out.few is not None
    accuracy = None if is_costly else analysis.model_accuracy(pipeline.predict, parts.held_out, kind=kind)
    metrics |= {
        "model": {"name": type(model).__name__, **(accuracy or {})},
        "prediction_kind": kind,
        "prediction": "" if parts.prediction is None else parts.prediction.why,
        "notes": notes,
        "layer": parts.extractor.layer,
        "z_shape": list(parts.probe.z_shape),
        "is_cut": parts.probe.is_cut,
        "seconds": {name: round(value, 3) for name, value in result.seconds.items()},
        "threads": dict(result.threads),
        "fit": parts.config.to_dict(),
    }
    if result.faithful_history is not None:
        metrics["training"]["faithful"] = result.faithful_history.to_dict()
        metrics["faithful"] = fit.faithful
    if fit.metric is not None:
        metrics["perceptual"] = fit.metric
    return Measured(plain(metrics), relevance, shares, _examples(fit, result, seed))


def _pair_shares(
    pipeline: Pipeline,
    concepts: ConceptModel,
    wanted: ConceptRequest | None,
    result: FitResult,
    notes: list[str],
    *,
    seed: int,
) -> analysis.PairShares | None:
    """Return shares by pairs; None where this fit knows of no pairs, with a note where it should have."""
    bound = result.bound
    if wanted is None or bound is None or bound.source is None or not concepts.names:
        return None
    train = (result.train,) if result.extra is None else (result.train, result.extra)
    held_out = None
    # Pairs of the images that are measured; of all that are held out where those have too few.
    for rows in dict.fromkeys((result.held_out, result.every_held_out)):
        if held_out is None and (found := over_held_out(wanted, rows)[0]) is not None:
            held_out = found, rows
    try:
        return shares_of_fit(pipeline, concepts, held_out, (bound.source, train), seed=seed)
    except DataError as error:
        notes.append(f"What the layer determines of concepts could not be measured by pairs: {error}")
        return None


def _of_copies(found: analysis.Duplicates) -> str:
    """Return what a user has to know of held-out images that train."""
    near = f"{found.near:,} nearly" if found.near else ""
    exact = f"{found.exact:,} exactly" if found.exact else ""
    return (
        f"Of {found.compared:,} held-out images that were looked at, {' and '.join(filter(None, (exact, near)))} are "
        "also in training: held-out figures are too good. Remove copies, or hold out by what the images have in common "
        "(held_out=)."
    )


def _examples(fit: Fit, result: FitResult, seed: int) -> Examples:
    rows = result.held_out
    index = rows.some(HISTOGRAM, seed=seed)
    mean, std = rows["mean"].rows(index), rows["std"].rows(index)
    pipeline = fit.parts.pipeline()
    v, _ = pipeline.invariances(drawn(mean, std, seed), pipeline.context(rows["z"].rows(index)))
    return Examples(_shown(fit.parts.held_out, rows), v.cpu())


def _shown(data: BatchSource, rows: Cache) -> Tensor:
    """Return the first images that are measured, (B, C, H, W), as the user gave them."""
    if not isinstance(rows, CachePart) or data.few is not None:
        return data.look(EXAMPLES)["images"]
    found: list[Tensor] = []
    start, count = 0, 0
    for batch in data.batches(draw=0):  # the pass that rows were read in
        images = batch["images"]
        inside = (rows.index >= start) & (rows.index < start + len(images))
        found.append(images[rows.index[inside] - start])
        start, count = start + len(images), count + int(inside.sum())
        if count >= EXAMPLES:
            break
    return torch.cat(found)[:EXAMPLES]
