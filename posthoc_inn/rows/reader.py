"""Reads images once: what is cached of each, row by row, for everything that is trained later."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Subset

from posthoc_inn.autoencoders import Autoencoder, draws_of
from posthoc_inn.autoencoders.base import CHUNK
from posthoc_inn.errors import DataError
from posthoc_inn.features import LayerExtractor
from posthoc_inn.files import writing
from posthoc_inn.images import Batch, BatchSource
from posthoc_inn.images.adapter import InputAdapter
from posthoc_inn.progress import Reporter
from posthoc_inn.rows.cache import Budget, Cache, pixels, unit
from posthoc_inn.rows.code_noise import CodeNoise
from posthoc_inn.rows.part import IMAGE

LABEL = "label:"
"""What the columns of labels start with."""
CACHE_ADVICE = "The rows of a fit are kept there: make room, or use fewer images or draws."
LATENTS = "latents"
"""Column of the latents that a generator's draws were made from."""
TOGETHER = 64
"""Draws after which rows are committed: a killed run makes fewer anew."""
PICTURES = 8 * 2**30
"""Bytes of a generator's pictures above which rows are kept without them."""


class RowReader:
    """Fills caches with pictures, z, predictions, and the latents' mean and deviation.

    Args:
        extractor: Φ.
        adapter: Between the user's tensors, pictures and model inputs.
        device: Where the model is.
        reporter: Told how far it is.
        out: Directory of the run, for rows on disk that a resumed run finds again; or None.
        resume: Use what is there.
        budget: Bytes of rows kept in memory, without `out`.
        for_concepts: Cache the images' indices, and their labels, too.
    """

    def __init__(
        self,
        extractor: LayerExtractor,
        adapter: InputAdapter,
        device: torch.device,
        reporter: Reporter,
        *,
        out: Path | None = None,
        resume: bool = False,
        budget: int,
        for_concepts: bool = False,
    ) -> None:
        self.extractor, self.adapter, self.device, self.reporter = extractor, adapter, device, reporter
        self.out, self.resume, self.budget = out, resume, budget
        self.for_concepts = for_concepts

    def row(self, images: Tensor, *, are_pictures: bool = False) -> dict[str, Tensor]:
        """Return what is cached of one batch: pictures, z, and what is compared of the prediction.

        Args:
            images: The user's tensors (B, C, H, W), or canonical images.
            are_pictures: Which of the two.
        """
        adapter = self.adapter
        with torch.no_grad():
            images = images.to(self.device)
            given = adapter.images_to_model(images) if are_pictures else adapter.to_model(images)
            z, output = self.extractor.features_and_prediction(given)
            shown = adapter.from_pictures(images) if are_pictures else adapter.to_images(images)
            row = {"images": pixels(adapter.to_square(shown)).cpu(), "z": z.float().cpu()}
            said = self.extractor.said(output)
            if said is not None:
                row["prediction"] = said
        return row

    def read(
        self, data: BatchSource, held_out: BatchSource, draws: int, extra: Any = None, *, key: str = ""
    ) -> tuple[Cache, Cache, Cache | None]:
        """Return cached rows of the training images, of the held-out ones, and of a concept source's own images.

        Args:
            data: Training images.
            held_out: Held-out images.
            draws: Passes over the training images.
            extra: A concept source's own images, or None.
            key: Of what the rows are of (`identity_of_rows`): rows of a run that is resumed are found under it.

        Raises:
            DataError: The rows cannot be written, or an image cannot be read.
        """
        known = data.length, held_out.length
        more = 0 if extra is None else len(extra)
        total = None if None in known else (known[0] or 0) * draws + (known[1] or 0) + more
        is_drawn = draws_of(data.data) is not None
        self.reporter.stage("making pictures and features" if is_drawn else "reading images and features", total)
        digest = f"{key} {self.for_concepts}"
        # Beside a run directory rows go to disk at once: a killed run finds them again, and the system's own page
        # cache keeps what fits in memory.
        budget = Budget(0 if self.out is not None else self.budget)
        self._done = 0
        passes = itertools.chain.from_iterable(data.batches(draw=k) for k in range(draws))
        train = self._made("train", data, budget, digest)
        train = self._fill("train", passes, budget, digest) if train is None else train
        kept = self._made("held_out", held_out, budget, digest)
        kept = self._fill("held_out", held_out.batches(draw=0), budget, digest) if kept is None else kept
        if extra is None:
            return train, kept, None
        batches = BatchSource(extra, batch_size=data.batch_size).batches(draw=0)
        return train, kept, self._fill("extra", batches, budget, digest, are_pictures=True)

    def read_alone(self, data: BatchSource) -> Cache:
        """Return cached rows of images that nothing is trained on, in memory up to the budget."""
        self.reporter.stage("reading images and features", data.length)
        self._done = 0
        return self._fill("alone", data.batches(draw=0), Budget(self.budget), "")

    def _made(self, part: str, data: BatchSource, budget: Budget, digest: str) -> Cache | None:
        """Return rows of a generator's draws, going on after those that a killed run has left; None for other data."""
        if draws_of(data.data) is None:
            return None
        latents = latents_of(data)
        directory = self.out / "cache" / part if self.out is not None else None
        cache = Cache(directory, budget)
        if directory is not None:
            if self.resume and cache.restore(digest):
                self._done += len(cache)
                return cache
            if not (self.resume and cache.restore_part(digest)):
                cache.remove()
        start = len(cache)
        self._done += start
        self.reporter.advance(self._done)
        size = self.adapter.image_size
        has_pictures = self.adapter.channels * size * size * len(latents) <= PICTURES
        if not has_pictures:
            self.reporter.note("The pictures of the draws are not kept with the rows: they are too many.")
        for batch in after(data, start, len(latents)):
            row = self.row(batch["images"]) | {LATENTS: latents[batch["index"]]}
            if not has_pictures:
                row.pop("images")
            if self.for_concepts:
                row |= _facts(batch)
            self._add(cache, row)
            if directory is not None and len(cache) // TOGETHER > (len(cache) - len(batch["images"])) // TOGETHER:
                with writing(cache.directory, CACHE_ADVICE):
                    cache.commit(digest)
        return self._complete(cache, directory, digest)

    def _fill(
        self, part: str, batches: Iterable[Batch], budget: Budget, digest: str, *, are_pictures: bool = False
    ) -> Cache:
        directory = self.out / "cache" / part if self.out is not None else None
        cache = Cache(directory, budget)
        if self.resume and directory is not None and cache.restore(digest):
            return cache
        if directory is not None:
            cache.remove()
        for batch in batches:
            row = self.row(batch["images"], are_pictures=are_pictures)
            if self.for_concepts and not are_pictures:
                row |= _facts(batch)
            self._add(cache, row)
        return self._complete(cache, directory, digest)

    def _add(self, cache: Cache, row: dict[str, Tensor]) -> None:
        """Append the rows of a batch, and show how many there are."""
        with writing(cache.directory, CACHE_ADVICE):
            cache.append(**row)
        self._done += len(row["z"])
        self.reporter.advance(self._done)

    def _complete(self, cache: Cache, directory: Path | None, digest: str) -> Cache:
        """Leave a full cache for a resumed run, where it has a place."""
        if directory is not None:
            with writing(cache.directory, CACHE_ADVICE):
                cache.save(digest)
        return cache

    def clean(self) -> None:
        """Remove the rows from the run's directory; caches that are open can still be read."""
        if self.out is None:
            return
        for part in ("train", "held_out", "extra"):
            Cache(self.out / "cache" / part).remove()
        shutil.rmtree(self.out / "cache", ignore_errors=True)

    def encode(self, autoencoder: Autoencoder, *caches: Cache, noise: CodeNoise | None = None) -> None:
        """Add mean and deviation of the latents, with `noise` if any, to the caches, in place of what is there.

        A generator's draws come with their latents, which have no deviation of their own.
        """
        self.reporter.stage("encoding images", sum(len(c) for c in caches))
        done = 0
        for cache in caches:
            cache.drop("mean")
            cache.drop("std")
            if LATENTS in cache:
                for (latents,) in cache.batches(CHUNK, LATENTS):
                    with writing(cache.directory, CACHE_ADVICE):
                        cache.append(mean=latents, std=_with(noise, torch.zeros_like(latents)))
                continue
            for (images,) in cache.batches(CHUNK, "images"):
                with torch.no_grad():
                    mean, std = autoencoder.encode(unit(images.to(self.device)))
                with writing(cache.directory, CACHE_ADVICE):
                    cache.append(mean=mean.float(), std=_with(noise, std.float()))
                done += len(images)
                self.reporter.advance(done)


def _with(noise: CodeNoise | None, std: Tensor) -> Tensor:
    return std if noise is None else noise.added(std)


def latents_of(data: BatchSource) -> Tensor:
    """Return the latents (N, D) of a source of a generator's draws, in their order."""
    found = draws_of(data.data)
    if found is None:
        raise DataError("These images are no draws of a generator, whose latents are known.")
    return found[0].latents[found[1]]


def after(data: BatchSource, start: int, stop: int) -> Iterator[Batch]:
    """Yield the batches of map-style data from item `start` on, numbered as in the whole."""
    if start < stop:
        for batch in BatchSource(Subset(data.data, range(start, stop)), data.batch_size).batches(draw=0):
            yield Batch(images=batch["images"], labels=batch["labels"], index=cast(Tensor, batch["index"]) + start)


def _facts(batch: Batch) -> dict[str, Tensor]:
    """Return index and labels of a batch, as columns."""
    found: dict[str, Tensor] = {}
    if batch["index"] is not None:
        found[IMAGE] = batch["index"].long()
    labels = batch["labels"]
    if isinstance(labels, Tensor):
        named = {"class": labels} if labels.ndim == 1 else {f"label_{k}": labels[:, k] for k in range(labels.shape[1])}
    else:
        named = dict(labels or {})
    for name, values in named.items():
        if values.ndim <= 2:
            found[LABEL + name] = values.double() if values.is_floating_point() else values.long()
    return found
