"""What an Interpreter answers through e: factors, edits, walks, directions, relevance; and how e is fitted later on."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from posthoc_inn import analysis
from posthoc_inn.analysis import editing
from posthoc_inn.concepts import AttributeSource, ConceptModel, Space, as_source, length_of
from posthoc_inn.config import ConceptConfig
from posthoc_inn.errors import ConfigError, DataError, NotFittedError, UnknownNameError
from posthoc_inn.fit.concepts import ConceptFit, ConceptRequest, bind, fit_concepts, rows_of
from posthoc_inn.fit.preparing import of_length
from posthoc_inn.images import BatchSource, in_order, positions, split
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.progress import Reporter, make_reporter
from posthoc_inn.rows.cache import DEFAULT_BUDGET
from posthoc_inn.rows.reader import RowReader
from posthoc_inn.training.precision import choose_precision


def is_share(held_out: Any) -> bool:
    """Whether `held_out` is a share of the data, rather than data."""
    return isinstance(held_out, (int, float)) and not isinstance(held_out, bool)


def request(
    data: Any, held_out: Any, concepts: Any, held_out_concepts: Any, *, seed: int, space: Space = "z_bar"
) -> tuple[Any, Any, ConceptRequest]:
    """Find out what a user means by concepts.

    Args:
        data: Images.
        held_out: Others, or the share of `data` that is held out.
        concepts: As `Interpreter.fit` takes them; None for an e without any.
        held_out_concepts: Those of other held-out images.
        seed: Of the split.
        space: What e is to be over.

    Returns:
        Training and held-out data, in an order that the concepts know, and the request.
    """
    source = None if concepts is None else as_source(concepts, data, seed=seed)
    aside = None
    if held_out_concepts is not None and not is_share(held_out):
        aside = as_source(held_out_concepts, held_out, seed=seed)
    elif not is_share(held_out) and isinstance(source, AttributeSource) and not isinstance(concepts, Mapping):
        # A data set's own attributes: the held-out one has them too, unless it has none.
        with contextlib.suppress(DataError, UnknownNameError):
            found = as_source(list(source.names), held_out, seed=seed)
            aside = source.over(found.values) if isinstance(found, AttributeSource) else found
    wanted = ConceptRequest(source, aside, space, length=length_of(data))
    data = in_order(data)
    if is_share(held_out):
        data, held_out = split(data, float(held_out), seed=seed)
        wanted.positions = positions(data), positions(held_out)
    return data, in_order(held_out), wanted


class ConceptQuestions(abc.ABC):
    """The part of `Interpreter` that is about concepts."""

    precision: Any
    seed: int

    @property
    @abc.abstractmethod
    def pipeline(self) -> Pipeline:
        """The fitted parts."""

    @property
    def concepts(self) -> ConceptModel:
        """The fitted e, over the autoencoder's latents.

        Raises:
            NotFittedError: There is none.
        """
        found: ConceptModel | None = self.__dict__.get("concepts_")
        if found is None:
            raise NotFittedError(
                "This Interpreter has no concepts: call fit(loader, concepts=...), or fit_concepts(data, ...)."
            )
        return found

    def _means(self, images: Tensor) -> Tensor:
        return self.pipeline.encode(images)[0]

    def factors(self, images: Tensor) -> dict[str, Tensor]:
        """Return e(E(x)) by name, residual first: each (B, width), for images (B, C, H, W) (MSC eq. 6).

        Raises:
            NotFittedError: There is no e.
        """
        concepts = self.concepts
        return dict(zip(concepts.factor_names, concepts.factors(self._means(images)), strict=True))

    def edit(
        self,
        images: Tensor,
        concept: str | Sequence[str],
        *,
        source: Tensor | None = None,
        value: Tensor | None = None,
        n: int | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Change a concept of images and decode them (MSC eq. 7): e, another factor, e⁻¹, D.

        Args:
            images: As given to `fit`, (B, C, H, W).
            concept: Which factor, or several; "residual" is factor 0.
            source: Take it from these images, one each or one for all.
            value: Set it to this value, (width,) or (B, width).
            n: Draw it n times from N(0, 1).
            seed: Of the draws.

        Returns:
            Pictures (B, C, H, W) in [0, 1]; with `n`, (B, n, C, H, W).

        Raises:
            ConfigError: Not exactly one of `source`, `value` and `n` is given.
            UnknownNameError: There is no such concept.
            ShapeError: A shape is wrong.
            NotFittedError: There is no e.
        """
        concepts = self.concepts
        if sum(given is not None for given in (source, value, n)) != 1:
            raise ConfigError(
                "Give exactly one of source= (images to take the concept from), value= (of the factor) and n= (random "
                "draws)."
            )
        latents = self._means(images)
        if source is not None:
            edited = editing.swap(concepts, latents, self._means(source), concept)
        elif value is not None:
            if not isinstance(concept, str):
                raise ConfigError("value= sets one concept; name one.")
            edited = editing.replace(concepts, latents, concept, value)
        else:
            edited = editing.resample(concepts, latents, concept, n or 0, seed)
        return self._decoded(edited)

    def _decoded(self, latents: Tensor) -> Tensor:
        """Return pictures (..., C, H, W) for latents (..., D)."""
        pictures = self.pipeline.decode(latents.reshape(-1, latents.shape[-1]))
        return pictures.reshape(*latents.shape[:-1], *pictures.shape[1:])

    def walk(
        self,
        images: Tensor,
        to: Tensor | None = None,
        *,
        steps: int = 8,
        kind: Literal["linear", "spherical"] = "linear",
        concept: str | Sequence[str] | None = None,
        direction: Tensor | None = None,
        amounts: Sequence[float] | Tensor | None = None,
    ) -> Tensor:
        """Walk through the space of e, and decode (IIN fig. 4, 7 and 8).

        Args:
            images: Where walks start, (B, C, H, W).
            to: Images where they end, one each or one for all.
            steps: Points on each walk between two images, both ends included.
            kind: How two images are joined.
            concept: Walk in this concept, or these, alone.
            direction: Instead of `to`, what `direction()` returned.
            amounts: How far along it, (A,); from -2 to 2 in `steps` steps by default.

        Returns:
            Pictures (B, steps, C, H, W), or (B, A, C, H, W) along a direction.

        Raises:
            ConfigError: Not exactly one of `to` and `direction` is given, or an argument is wrong.
            NotFittedError: There is no e.
        """
        if (to is None) == (direction is None):
            raise ConfigError("Give either to= (images where the walk ends) or direction= (what direction() returned).")
        latents = self._means(images)
        if to is not None:
            return self._decoded(editing.walk(self.concepts, latents, self._means(to), steps, kind, concept))
        far = torch.linspace(-2, 2, steps) if amounts is None else amounts
        return self._decoded(editing.walk_along(self.concepts, latents, torch.as_tensor(direction), far))

    def direction(self, with_images: Tensor, without_images: Tensor, *, concept: str | None = None) -> Tensor:
        """Return the direction (D,) of an attribute in the space of e (IIN eq. 14, in terms of e, not of x).

        Args:
            with_images: Examples that have it.
            without_images: Examples that do not.
            concept: Keep the part within this concept alone.
        """
        return editing.direction(self.concepts, self._means(with_images), self._means(without_images), concept)

    def concept_relevance(self, data: Any, *, samples: int = 10_000, seed: int = 0) -> analysis.ConceptRelevance:
        """Return how much of each concept the layer determines (MSC eq. 20), with the first-order share beside it.

        Args:
            data: Images as given to `fit`: a loader, data set or tensor.
            samples: Latents in all: images × draws of v.
            seed: Of v and of the bootstrap.

        Raises:
            NotFittedError: Nothing was fitted, or there is no e.
        """
        source = BatchSource(data, batch_size=128, limit=max(3, samples // 10))
        z = torch.cat([self.pipeline.features(batch["images"]) for batch in source.batches()])
        return analysis.concept_relevance(self.pipeline, self.concepts, z, samples=samples, seed=seed)

    def fit_concepts(
        self,
        data: Any,
        concepts: Any = None,
        *,
        space: Space = "z_bar",
        held_out: Any = 0.1,
        held_out_concepts: Any = None,
        sizes: Sequence[int] | None = None,
        draws: int = 1,
        steps: int | None = None,
        config: ConceptConfig | None = None,
        out: str | Path | None = None,
        resume: bool = False,
        progress: bool | Reporter | None = None,
    ) -> ConceptFit:
        """Fit e alone, once autoencoder and t are there.

        Args:
            data: As given to `fit`.
            concepts: As `fit` takes them; None for an e without concepts (IIN eq. 12), to draw new images from.
            space: "z_bar", over the autoencoder's latents; or "z", over the layer's representations, to see how the
                network responds (IIN section 4.2).
            held_out: Images kept aside, or the share of `data` that is.
            held_out_concepts: Concepts of held-out images that are other data.
            sizes: Widths of the factors, residual first, the random concept last; estimated by default.
            draws: Passes over randomly augmented data.
            steps: Steps of e; instead of the preset's.
            config: Shape and training of e; the preset's by default.
            out: Directory for cached rows and checkpoints.
            resume: Go on from what is in `out`.
            progress: Show a progress bar; None for when standard error is a terminal.

        Returns:
            e with its names, the concepts' scores and the curve. An e over latents with concepts becomes `concepts_`.

        Raises:
            PosthocInnError: A concept cannot be learned, the data cannot be used, or training diverged.
        """
        pipeline = self.pipeline
        chosen = config or self._concept_config()
        if steps is not None:
            chosen = chosen.replace(training=of_length(chosen.training, steps))
        data, held_out, wanted = request(data, held_out, concepts, held_out_concepts, seed=self.seed, space=space)
        wanted.sizes = None if sizes is None else tuple(sizes)
        reporter = progress if isinstance(progress, Reporter) else make_reporter(progress, stages=3)
        where = None if out is None else Path(out)
        sources = [BatchSource(part, batch_size=128, seed=self.seed).check() for part in (data, held_out)]
        reader = RowReader(
            pipeline.extractor, pipeline.adapter, pipeline.device, reporter,
            out=where, resume=resume, budget=DEFAULT_BUDGET, for_concepts=True,
        )  # fmt: skip
        with reporter:
            train, kept, extra = reader.read(sources[0], sources[1], draws, wanted.extra)
            bound = bind(wanted, train, kept, extra)
            caches = [cache for cache in (train, extra) if cache is not None]
            if space == "z_bar":
                reader.encode(pipeline.autoencoder, *caches, kept)
            reporter.stage("e", chosen.training.steps)
            found = fit_concepts(
                bound, rows_of(space, *caches), rows_of(space, kept),
                config=chosen, seed=self.seed, device=pipeline.device,
                precision=choose_precision(self.precision, pipeline.device),
                checkpoint=None if where is None else where / "checkpoints" / f"e-{space}.safetensors", resume=resume,
                progress=lambda step, total, figures: reporter.advance(step, figures), note=reporter.note,
            )  # fmt: skip
        if space == "z_bar" and concepts is not None:
            self.concepts_, self.concept_fit_ = found.model, found
        return found

    @abc.abstractmethod
    def _concept_config(self) -> ConceptConfig:
        """Return the preset's e and its training."""
