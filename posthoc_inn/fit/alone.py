"""Fitting e alone, once autoencoder and t are there: over latents, or over a layer's z (IIN section 4.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from posthoc_inn.concepts import Space
from posthoc_inn.config import ConceptConfig
from posthoc_inn.fit.binding import bind, check_placed
from posthoc_inn.fit.concepts import ConceptFit, check_request, check_width, fit_concepts, rows_of
from posthoc_inn.fit.lock import locked
from posthoc_inn.fit.parts import checkpoint_of
from posthoc_inn.fit.preparing import bounded, concepts_of_length, find_concepts, opened, used_images
from posthoc_inn.fit.request import FitRequest
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.progress import Reporter
from posthoc_inn.rows.cache import DEFAULT_BUDGET
from posthoc_inn.rows.identity import identity_of_rows, key_of
from posthoc_inn.rows.reader import RowReader
from posthoc_inn.weights import fingerprint


def fit_concepts_alone(
    pipeline: Pipeline,
    request: FitRequest,
    *,
    config: ConceptConfig,
    space: Space,
    sizes: Sequence[int] | None,
    seed: int,
    precision: Literal["32", "bf16"],
    reporter: Reporter,
) -> ConceptFit:
    """Train e on images that are read anew.

    Args:
        pipeline: The fitted parts.
        request: Data, concepts, draws, steps of e and directory; its other arguments are about t.
        config: Of e and its training.
        space: What e is over.
        sizes: Widths of the factors, residual first, the random concept last; estimated when None.
        seed: Of everything random.
        precision: Of the matrix products.
        reporter: Shows how far it is.

    Raises:
        PosthocInnError: A concept cannot be learned, the data cannot be used, or training diverged.
    """
    request.check()
    chosen = concepts_of_length(config, request.concept_steps)
    request = bounded(request, used_images(chosen.training), seed=seed, reporter=reporter)
    data, held_out, wanted = find_concepts(request, seed=seed, space=space)
    wanted.sizes = None if sizes is None else tuple(sizes)
    dim = pipeline.latent_dim if space == "z_bar" else math.prod(pipeline.z_shape)
    if space == "z":
        check_width(dim)
    check_request(wanted, chosen, dim)
    train_images = opened(data, request.data, seed=seed)
    kept_images = opened(held_out, request.held_out, seed=seed, is_held_out=True)
    check_placed(wanted, train_images)
    reader = RowReader(
        pipeline.extractor,
        pipeline.adapter,
        pipeline.device,
        reporter,
        out=request.directory,
        resume=request.resume,
        budget=DEFAULT_BUDGET,
        for_concepts=True,
    )
    with locked(request.directory), reporter:
        key = ""
        if request.directory is not None:
            rows = identity_of_rows(
                pipeline.extractor, pipeline.adapter, train_images, kept_images, request.draws, wanted.extra
            )
            noise = pipeline.code_noise
            more = [] if noise is None or space != "z_bar" else [f"codes with noise of {noise.share}"]
            key = key_of(rows, fingerprint(pipeline.autoencoder), *more)
        train, kept, extra = reader.read(train_images, kept_images, request.draws, wanted.extra, key=key)
        bound = bind(wanted, train, kept, extra)
        check_request(bound, chosen, dim)
        caches = [cache for cache in (train, extra) if cache is not None]
        if space == "z_bar":
            reader.encode(pipeline.autoencoder, *caches, kept, noise=pipeline.code_noise)
        reporter.stage("e", chosen.training.steps)
        return fit_concepts(
            bound,
            rows_of(space, *caches),
            rows_of(space, kept),
            config=chosen,
            seed=seed,
            device=pipeline.device,
            precision=precision,
            checkpoint=checkpoint_of(request.directory, f"e-{space}"),
            resume=request.resume,
            progress=lambda step, total, figures: reporter.advance(step, figures),
            note=reporter.note,
            key=key,
        )
