"""Shares by pairs after a fit, and of data that come with concepts: which pairs, and the rows that they are of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from posthoc_inn import analysis
from posthoc_inn.analysis.pair_shares import MOST_IMAGES
from posthoc_inn.concepts import ConceptModel, LabelsOf, as_source, length_of
from posthoc_inn.fit.binding import over_held_out, over_rows
from posthoc_inn.fit.preparing import find_concepts
from posthoc_inn.fit.request import FitRequest
from posthoc_inn.images import BatchSource, positions, some_of
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.progress import Reporter
from posthoc_inn.protocols import ConceptSource
from posthoc_inn.rows.cache import DEFAULT_BUDGET, Cache, joined_rows
from posthoc_inn.rows.part import IMAGE
from posthoc_inn.rows.reader import RowReader


def shares_of_fit(
    pipeline: Pipeline,
    concepts: ConceptModel,
    held_out: tuple[ConceptSource, Cache] | None,
    train: tuple[ConceptSource, tuple[Cache, ...]],
    *,
    seed: int,
) -> analysis.PairShares:
    """Return shares by pairs of held-out images; of training images where nothing is known of others.

    Args:
        pipeline: The fitted parts.
        concepts: e.
        held_out: Its concepts over held-out rows, and these; or None.
        train: Its concepts over training rows, and these, with those of a concept source's own images.
        seed: Of all draws.

    Raises:
        DataError: There are no pairs.
    """
    if held_out is not None:
        return _shares(pipeline, concepts, held_out[0], (held_out[1],), seed=seed, are_held_out=True)
    return _shares(pipeline, concepts, *train, seed=seed, are_held_out=False)


def shares_of_held_out(
    pipeline: Pipeline, concepts: ConceptModel, request: FitRequest, *, seed: int
) -> analysis.PairShares | None:
    """Return shares by pairs of a fit's held-out images, of an e that the fit was given.

    Args:
        pipeline: The fitted parts.
        concepts: e.
        request: What was asked for, with e's concepts.
        seed: Of the fit.

    Returns:
        The shares; None where nothing is known of the held-out images' concepts, or they give no pairs.

    Raises:
        PosthocInnError: The concepts stand for nothing, or are others than e's.
    """
    _, held_out, wanted = find_concepts(request, seed=seed)
    images = BatchSource(held_out, batch_size=128, seed=seed).check()
    cache = _rows(pipeline, images)
    source, _ = over_held_out(wanted, cache)
    return None if source is None else _shares(pipeline, concepts, source, (cache,), seed=seed, are_held_out=True)


def shares_of_data(
    pipeline: Pipeline,
    concepts: ConceptModel,
    data: Any,
    wanted: Any,
    *,
    options: Mapping[str, Any] | None = None,
    samples: int = 10_000,
    seed: int = 0,
    are_held_out: bool = True,
) -> analysis.PairShares:
    """Return shares by pairs of images that come with concepts.

    Args:
        pipeline: The fitted parts.
        concepts: e.
        data: Images as given to `fit`.
        wanted: Their concepts, as `fit` takes them: the same ones, in the same order.
        options: Of a table or a registered concept source.
        samples: Latents in all.
        seed: Of the choice of images, and of all draws.
        are_held_out: Whether e was trained without these images.

    Raises:
        PosthocInnError: The concepts cannot be had of these data, or are others than e's.
    """
    source = as_source(wanted, data, seed=seed, options=options)
    length = length_of(data)
    some = some_of(data, MOST_IMAGES, seed=seed)
    place = positions(some) if some is not data else None
    images = BatchSource(some, batch_size=128, seed=seed).check()
    if isinstance(source, LabelsOf):
        source.check(images)
    cache = _rows(pipeline, images)
    over = over_rows(source, cache, place, length, None)
    return _shares(pipeline, concepts, over, (cache,), samples=samples, seed=seed, are_held_out=are_held_out)


def _rows(pipeline: Pipeline, images: BatchSource) -> Cache:
    """Return z, latents and labels of images."""
    reader = RowReader(
        pipeline.extractor, pipeline.adapter, pipeline.device, Reporter(), budget=DEFAULT_BUDGET, for_concepts=True
    )
    cache = reader.read_alone(images)
    reader.encode(pipeline.autoencoder, cache, noise=pipeline.code_noise)
    return cache


def _shares(
    pipeline: Pipeline,
    concepts: ConceptModel,
    source: ConceptSource,
    caches: tuple[Cache, ...],
    *,
    seed: int,
    are_held_out: bool,
    samples: int = 10_000,
) -> analysis.PairShares:
    rows = analysis.paired_rows(source, concepts.names, sum(map(len, caches)), seed=seed)
    z, mean, std = (joined_rows([cache[column] for cache in caches], rows.index) for column in ("z", "mean", "std"))
    return analysis.pair_shares(
        pipeline,
        concepts,
        rows,
        z.float(),
        mean,
        std,
        images=_images(caches)[rows.index],
        samples=samples,
        seed=seed,
        are_held_out=are_held_out,
    )


def _images(caches: tuple[Cache, ...]) -> Tensor:
    """Return the image that each row is of; a concept source's own images follow those of the data."""
    found: list[Tensor] = []
    start = 0
    for cache in caches:
        everything = torch.arange(len(cache))
        own = cache[IMAGE].rows(everything) if IMAGE in cache else everything
        own = torch.where(own < 0, everything, own) + start
        start = int(own.max()) + 1 if len(own) else start
        found.append(own)
    return torch.cat(found)
