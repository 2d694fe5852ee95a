"""The facade: one object that attaches to a trained model, fits E, D and t, and answers questions about a layer."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from posthoc_inn import analysis
from posthoc_inn.ambient import in_plain_torch
from posthoc_inn.analysis import editing
from posthoc_inn.analysis.by_name import run_analysis
from posthoc_inn.analysis.results import html_table
from posthoc_inn.autoencoders import Autoencoder, as_autoencoder, latent_shape_of
from posthoc_inn.bundle import Bundle, load_bundle, save_bundle
from posthoc_inn.concepts import RANDOM, ConceptModel, Space
from posthoc_inn.config import AutoencoderConfig, ConceptConfig, FitConfig, ImageSpec, Precision, preset
from posthoc_inn.errors import ConfigError, NotFittedError, OutsideWarning, listed
from posthoc_inn.features import LayerExtractor, PredictionKind
from posthoc_inn.fit import ConceptFit, Fit, FitRequest, FitResult, Plan, Subject, prepare
from posthoc_inn.fit.alone import fit_concepts_alone
from posthoc_inn.fit.drawing import drawn as number_to_draws
from posthoc_inn.fit.events import announced
from posthoc_inn.fit.measuring import EXAMPLES, measure_fit
from posthoc_inn.fit.pair_shares import shares_of_data
from posthoc_inn.fit.preparing import check_space
from posthoc_inn.images import BatchSource
from posthoc_inn.objectives import drawn
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.progress import Reporter, make_reporter
from posthoc_inn.report.findings import findings
from posthoc_inn.report.fitted import ReportWords, write_fitted_report
from posthoc_inn.report.html import KEY
from posthoc_inn.rows.code_noise import CodeNoise
from posthoc_inn.rows.world import World
from posthoc_inn.training.precision import check_precision, choose_device, choose_precision
from posthoc_inn.weights import describe_tensors, fingerprint


class Interpreter:
    """Recovers what a layer of a trained model has thrown away, and shows both as images (MSC).

    The model's weights, buffers, flags and hooks are left as they are. With `spec`, images given to this object are
    canonical, in [0, 1], and the model gets them resized and normalised by `spec`; without it they are what
    the model takes, unchanged, and `mean` and `std` (or what is recognised) say how to get back to [0, 1].

    Args:
        model: Any trained `torch.nn.Module`.
        layer: Dotted name of the layer; `posthoc_inn.list_layers(model, images)` prints them.
        spec: How the model wants canonical images.
        mean: Mean the user's tensors were normalised with, per channel, in units of [0, 1].
        std: Deviation they were normalised with.
        output: Which output of a layer that returns a tuple or dict.
        call: Which call of a module that is called more than once.
        tokens: Which tokens of a transformer layer: all, class, patches or mean.
        prediction: Which tensor of a model's output is its prediction, when it returns several.
        prediction_kind: What of predictions is compared, for samples and their images: "classes", "multilabel" (the
            sets of labels), "embedding" (their cosine), or "none"; "auto" recognises it, and `metrics_` says as what.
        autoencoder: A trained one to share, a `GivenGenerator`, or the shape of a new one; None for the built-in one.
        concept_model: A trained e to share, over latents of that autoencoder.
        preset: Name of a preset, or a `FitConfig`.
        image_size: Side of the autoencoder's images in pixels, the shorter side of pictures; None to choose from the
            images.
        device: "auto" is where the model is.
        precision: "auto", "32" or "bf16", for training.
        seed: Of everything random.

    Attributes:
        adapter_: How images become model inputs and pictures.
        probe_: What one look at the layer found (shape of z, whether it is a true cut); after `fit` only.
        autoencoder_: E and D.
        flow_: t.
        concept_model_: e with its concepts' names, where it was fitted or given.
        pipeline_: All of these joined.
        history_: Curve of t; `autoencoder_history_` that of the autoencoder (None where one was given), and
            `concept_fit_` has e's curve and scores, where it was fitted.
        fit_config_: Sizes and steps that the fit used.
        pair_shares_: What of each concept the layer determines, by pairs of held-out images, where e was fitted.
        relevance_: The papers' measure of it (MSC eq. 20), on held-out images.
        metrics_: What `metrics.json` holds, as plain data.
        examples_: A few held-out images and their v, which `report` shows. No other image is kept.

    >>> interpreter = Interpreter(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten()), layer="1")
    >>> interpreter.sample(torch.rand(2, 3, 28, 28), n=2)
    Traceback (most recent call last):
    ...
    posthoc_inn.errors.NotFittedError: This Interpreter is not fitted: call fit(loader) first, or Interpreter.load(...).
    """

    @in_plain_torch
    def __init__(
        self,
        model: nn.Module,
        layer: str,
        *,
        spec: ImageSpec | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        output: int | str | None = None,
        call: int | None = None,
        tokens: Literal["all", "class", "patches", "mean"] = "all",
        prediction: int | str | None = None,
        prediction_kind: PredictionKind = "auto",
        autoencoder: nn.Module | AutoencoderConfig | None = None,
        concept_model: ConceptModel | None = None,
        preset: str | FitConfig = "default",
        image_size: int | None = None,
        device: str = "auto",
        precision: Precision = "auto",
        seed: int = 0,
    ) -> None:
        self.model, self.layer = model, layer
        self.spec, self.mean, self.std = spec, mean, std
        self.origin: dict[str, Any] = {}
        self.output, self.call, self.tokens, self.prediction = output, call, tokens, prediction
        self.autoencoder, self.preset, self.image_size = autoencoder, preset, image_size
        check_precision(precision)
        if concept_model is not None:
            if not isinstance(autoencoder, nn.Module):
                raise ConfigError("A trained e needs the trained autoencoder that it was fitted over: give both.")
            check_space(concept_model, as_autoencoder(autoencoder).latent_dim)
            self.concept_model_ = concept_model
        self.device, self.precision, self.seed = device, precision, seed
        self.prediction_kind = prediction_kind
        self.extractor = LayerExtractor(
            model,
            layer,
            output=output,
            call=call,
            tokens=tokens,
            prediction=prediction,
            prediction_kind=prediction_kind,
        )

    # ---- learning

    @in_plain_torch
    def fit(
        self,
        data: Any,
        *,
        held_out: Any = 0.1,
        concepts: Any = None,
        held_out_concepts: Any = None,
        concept_options: Mapping[str, Any] | None = None,
        draws: int = 1,
        epochs: float | None = None,
        steps: int | None = None,
        autoencoder_steps: int | None = None,
        concept_steps: int | None = None,
        refits: int = 0,
        image_metrics: Sequence[str] = (),
        out: str | Path | None = None,
        resume: bool = False,
        evaluate: bool = True,
        progress: bool | Reporter | None = None,
        announce: Callable[[Plan], None] | None = None,
    ) -> Interpreter:
        """Train the autoencoder (unless a trained one was given), t, and with `concepts` e too.

        Labels are never needed for the first two.

        Args:
            data: A DataLoader, data set or tensor of x, (x, y) or dicts; with a generator as the autoencoder, its
                draws, or their number.
            held_out: The same for images kept aside, or the share of `data` that is.
            concepts: What pairs of images have in common: "labels" (of the data), "attributes" (the data set's own) or
                a list of their names, a CSV file, a mapping from names to values with one an image, a registered
                concept source's name, or any object with `names` and `pairs(n, seed=)`, such as
                `posthoc_inn.concepts.GivenPairs`.
            held_out_concepts: The same for held-out images that are other data, unknown to `concepts`; a table that
                names their files too need not be given again.
            concept_options: Of a table (columns, files, delimiter, neighbors, agree) or of a registered concept source.
            draws: Passes over randomly augmented data, each cached as a draw of its own.
            epochs: Passes of t over the cached rows; instead of the preset's steps.
            steps: Steps of t; instead of the preset's.
            autoencoder_steps: Steps of the autoencoder; instead of the preset's.
            concept_steps: Steps of e; instead of the preset's.
            refits: More trainings of t with other seeds, for how much its figures vary (`metrics_["refits"]`).
            image_metrics: Names of registered image metrics that reconstructions are measured by.
            out: Directory for checkpoints and cached rows, so that the run can be resumed.
            resume: Go on from what is in `out`.
            evaluate: Measure on held-out images afterwards, into `metrics_`.
            progress: Show a progress bar; None for when standard error is a terminal.
            announce: Called with what is about to be done, before it is.

        Returns:
            This object.

        Raises:
            ConfigError: An argument is wrong; all problems at once.
            DataError: The images cannot be used, or their normalisation cannot be recognised.
            LayerNotFoundError: The layer is never reached.
            TrainingError: Training diverged, or there is nothing fitting to resume.
            KeyboardInterrupt: After Ctrl-C, once a checkpoint has been written.
        """
        request = FitRequest(
            data=data,
            held_out=held_out,
            concepts=concepts,
            held_out_concepts=held_out_concepts,
            concept_options=dict(concept_options or {}),
            draws=draws,
            epochs=epochs,
            steps=steps,
            autoencoder_steps=autoencoder_steps,
            concept_steps=concept_steps,
            refits=refits,
            image_metrics=tuple(image_metrics),
            out=out,
            resume=resume,
            evaluate=evaluate,
        )
        reporter = progress
        if not isinstance(reporter, Reporter):
            reporter = make_reporter(reporter, stages=6 + (concepts is not None) + max(0, refits))
        fit = self.prepare(request, reporter=reporter)
        if announce is not None:
            announce(fit.plan())
        return self.learn(fit)

    @in_plain_torch
    def plan(self, data: Any, **request: Any) -> Plan:
        """Return what `fit` with these arguments would do, and how long it would take; nothing here is changed.

        Raises:
            PosthocInnError: As `fit` does, before any training.
        """
        return self.prepare(FitRequest.of(data, request)).plan()

    @in_plain_torch
    def prepare(self, request: FitRequest, *, reporter: Reporter | None = None) -> Fit:
        """Return a fit of which everything is opened and checked, and nothing is trained: for `learn`.

        Args:
            request: What is asked for.
            reporter: Gets notes, and shows how far it is; silent by default.

        Raises:
            PosthocInnError: As `fit` does, before any training.
        """
        return prepare(self._subject(), request, reporter=reporter or Reporter())

    @in_plain_torch
    def learn(self, fit: Fit, *, trained: Callable[[], None] | None = None) -> Interpreter:
        """Run a fit that `prepare` returned, and keep what it learned.

        Args:
            fit: What to run.
            trained: Called when all is trained and kept here, before it is measured: measuring may fail.

        Raises:
            PosthocInnError: As `fit` does, during training.
        """
        with fit.locked(), announced(fit.request, self.layer, fit.seconds), fit.reporter:
            result = fit.run()
            self._keep(fit, result)
            if trained is not None:
                trained()
            if fit.request.evaluate:
                try:
                    self._measure(fit, result)
                except Exception as error:
                    error.add_note("All is trained and kept in this Interpreter; only its figures are missing.")
                    raise
        fit.clean()
        return self

    def _subject(self) -> Subject:
        return Subject(
            extractor=self.extractor,
            config=preset(self.preset) if isinstance(self.preset, str) else self.preset,
            spec=self.spec,
            mean=self.mean,
            std=self.std,
            autoencoder=self.autoencoder,
            concept_model=self.__dict__.get("concept_model_"),
            image_size=self.image_size,
            device=self.device,
            precision=self.precision,
            seed=self.seed,
        )

    def _keep(self, fit: Fit, result: FitResult) -> None:
        parts = fit.parts
        self.adapter_, self.probe_, self.fit_config_ = parts.adapter, parts.probe, parts.config
        self.autoencoder_: Autoencoder = result.autoencoder
        self.flow_ = result.flow
        self.history_, self.autoencoder_history_ = result.flow_history, result.autoencoder_history
        self.extractor, self.pipeline_ = parts.extractor, parts.pipeline()
        world = World.of(result.train, result.held_out)
        if world is not None:
            self.pipeline_ = dataclasses.replace(self.pipeline_, world=world.to(parts.device))
        if result.concepts is not None:
            self.concept_model_, self.concept_fit_ = result.concepts.model, result.concepts

    def _measure(self, fit: Fit, result: FitResult) -> None:
        fit.reporter.stage("measuring on held-out images", None)
        started = time.perf_counter()
        model = self.__dict__.get("concept_model_")
        measured = measure_fit(fit, result, model, seed=self.seed)
        self.examples_ = measured.examples
        if measured.relevance is not None:
            self.relevance_ = measured.relevance
        if measured.pair_shares is not None:
            self.pair_shares_ = measured.pair_shares
        self.metrics_ = measured.metrics
        self.metrics_["seconds"]["measuring"] = round(time.perf_counter() - started, 3)

    @in_plain_torch
    def fit_concepts(
        self,
        data: Any,
        concepts: Any = None,
        *,
        space: Space = "z_bar",
        sizes: Sequence[int] | None = None,
        steps: int | None = None,
        config: ConceptConfig | None = None,
        progress: bool | Reporter | None = None,
        **request: Any,
    ) -> ConceptFit:
        """Fit e alone, once autoencoder and t are there.

        Args:
            data: As given to `fit`.
            concepts: As `fit` takes them; None for an e without concepts (IIN eq. 12), to draw new images from.
            space: "z_bar", over the autoencoder's latents; or "z", over the layer's representations, to see how the
                network responds (IIN section 4.2).
            sizes: Widths of the factors, residual first, the random concept last; estimated by default.
            steps: Steps of e; instead of the preset's.
            config: Shape and training of e; the preset's by default.
            progress: Show a progress bar; None for when standard error is a terminal.
            **request: As `fit` takes them: held_out, held_out_concepts, concept_options, draws, out, resume.

        Returns:
            e with its names, the concepts' scores and the curve. An e over latents with concepts becomes
            `concept_model_`.

        Raises:
            PosthocInnError: A concept cannot be learned, the data cannot be used, or training diverged.
        """
        pipeline = self.pipeline
        reporter = progress if isinstance(progress, Reporter) else make_reporter(progress, stages=3)
        data = number_to_draws(data, pipeline.autoencoder, self.seed)
        found = fit_concepts_alone(
            pipeline,
            FitRequest.of(data, {**request, "concepts": concepts, "concept_steps": steps}),
            config=config or self._subject().config.concepts,
            space=space,
            sizes=sizes,
            seed=self.seed,
            precision=choose_precision(self.precision, pipeline.device),
            reporter=reporter,
        )
        if space == "z_bar" and concepts is not None:
            self.concept_model_, self.concept_fit_ = found.model, found
        return found

    # ---- what was learned

    @property
    def pipeline(self) -> Pipeline:
        """The fitted parts.

        Raises:
            NotFittedError: Before `fit`.
        """
        if not hasattr(self, "pipeline_"):
            raise NotFittedError("This Interpreter is not fitted: call fit(loader) first, or Interpreter.load(...).")
        return self.pipeline_

    @property
    def concept_model(self) -> ConceptModel:
        """The fitted e, over the autoencoder's latents.

        Raises:
            NotFittedError: There is none.
        """
        if "concept_model_" not in self.__dict__:
            raise NotFittedError(
                "This Interpreter has no concepts: call fit(loader, concepts=...), or fit_concepts(data, ...)."
            )
        return self.concept_model_

    # ---- images

    @in_plain_torch
    def sample(
        self,
        images: Tensor | None = None,
        n: int = 8,
        *,
        z: Tensor | None = None,
        v: Tensor | None = None,
        seed: int = 0,
        precision: Precision = "32",
        refine: int = 0,
    ) -> Tensor:
        """Draw images that share the layer's representation: D(t⁻¹(v given z)) with z = Φ(x) (MSC eq. 2).

        Args:
            images: As given to `fit`, (B, C, H, W).
            n: N, samples per image.
            z: Representations (B, *z_shape), instead of images: what an embedding alone determines.
            v: Invariances to use instead of drawing them: (N, D) for all images, or (B, N, D).
            seed: Seed of v.
            precision: Of t's matrix products: "32"; "bf16", faster where the machine has it, for samples that differ
                by `metrics_["likelihood"]["bf16_error"]`; or "auto", bf16 where it is faster.
            refine: Gradient steps that bring Φ of each sample nearer to z, where the model and the decoder pass
                gradients on; 20 to 40 do (`posthoc_inn.analysis.moved`). `analyze("samples", images, refine=20)` tells
                what they change.

        Returns:
            Pictures (B, N, C, H, W) in [0, 1], of the autoencoder's size.

        Raises:
            NotFittedError: Before `fit`.
            ShapeError: A shape is wrong.
            ConfigError: n is less than 1, there is no such precision, not exactly one of images and z is given, or
                samples are to be refined where there are no gradients.
        """
        pipeline = self.pipeline
        chosen = choose_precision(precision, pipeline.device)
        if n < 1:
            raise ConfigError(f"n must be at least 1, got {n}.")
        analysis.check_steps(refine)
        z = pipeline.z_of(images, z)
        context = pipeline.context(z)
        if v is None:
            generator = torch.Generator().manual_seed(seed)
            v = torch.randn(len(context), n, pipeline.latent_dim, generator=generator)
        latents = pipeline.sample_latents(context, v, precision=chosen)
        return pipeline.pictures(analysis.moved(pipeline, latents, z, refine) if refine else latents)

    @in_plain_torch
    def invariances(self, images: Tensor) -> Tensor:
        """Return v = t(E(x) given Φ(x)), shape (B, D), for images (B, C, H, W), at the mean of the encoder."""
        pipeline = self.pipeline
        context = pipeline.context(pipeline.z_of(images))
        return pipeline.invariances(pipeline.means(images), context)[0]

    @in_plain_torch
    def reconstruct(self, images: Tensor, *, z_of: Tensor | None = None, z: Tensor | None = None) -> Tensor:
        """Return D(t⁻¹(v given z)), pictures (B, C, H, W) in [0, 1], with v of `images`.

        Args:
            images: As given to `fit`, (B, C, H, W); their v is used.
            z_of: Images whose z is used instead of that of `images`: what one has thrown away, recombined with
                what the layer keeps of the other.
            z: The same as representations (B, *z_shape).
        """
        pipeline = self.pipeline
        v = self.invariances(images)
        other = images if z_of is None and z is None else z_of
        context = pipeline.context(pipeline.z_of(other, z))
        return pipeline.decode(pipeline.sample_latents(context, v[:, None]).flatten(0, 1))

    @in_plain_torch
    def log_likelihood(self, images: Tensor, *, z: Tensor | None = None, seed: int = 0) -> Tensor:
        """Return log p(z_bar given z), shape (B,), in nats with all constants, at a draw of the stochastic encoder.

        Args:
            images: As given to `fit`, (B, C, H, W); z_bar = E(x).
            z: Representations (B, *z_shape) to be given instead of Φ(x).
            seed: Of the draw.
        """
        pipeline = self.pipeline
        context = pipeline.context(pipeline.z_of(images if z is None else None, z))
        mean, std = pipeline.encode(pipeline.adapter.read(images))
        return -pipeline.invariances(drawn(mean, std, seed), context)[1]

    @in_plain_torch
    def factors(self, images: Tensor) -> dict[str, Tensor]:
        """Return e(E(x)) by name, residual first: each (B, width), for images (B, C, H, W) (MSC eq. 6).

        Raises:
            NotFittedError: There is no e.
        """
        model = self.concept_model
        return dict(zip(model.factor_names, model.factors(self.pipeline.means(images)), strict=True))

    @in_plain_torch
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
            n: Draw it n times, with the deviation that the factor has over held-out images.
            seed: Of the draws.

        Returns:
            Pictures (B, C, H, W) in [0, 1]; with `n`, (B, n, C, H, W).

        Raises:
            ConfigError: Not exactly one of `source`, `value` and `n` is given.
            UnknownNameError: There is no such concept.
            ShapeError: A shape is wrong.
            NotFittedError: There is no e.
        """
        model, pipeline = self.concept_model, self.pipeline
        if pipeline.world is not None:
            pipeline.z_of(images)  # warns of images unlike those of the fit
        taken = None if source is None else pipeline.means(source)
        latents = pipeline.means(images)
        return pipeline.pictures(editing.edited(model, latents, concept, source=taken, value=value, n=n, seed=seed))

    @in_plain_torch
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
        model, pipeline = self.concept_model, self.pipeline
        latents = pipeline.means(images)
        if to is not None:
            return pipeline.pictures(editing.walk(model, latents, pipeline.means(to), steps, kind, concept))
        far = torch.linspace(-2, 2, steps) if amounts is None else amounts
        return pipeline.pictures(editing.walk_along(model, latents, torch.as_tensor(direction), far))

    @in_plain_torch
    def direction(self, with_images: Tensor, without_images: Tensor, *, concept: str | None = None) -> Tensor:
        """Return the direction (D,) of an attribute in the space of e (IIN eq. 14, in terms of e, not of x).

        Args:
            with_images: Examples that have it.
            without_images: Examples that do not.
            concept: Keep the part within this concept alone.
        """
        means = self.pipeline.means
        return editing.direction(self.concept_model, means(with_images), means(without_images), concept)

    # ---- questions

    @in_plain_torch
    def analyze(
        self, name: str, data: Any = None, *, z: Tensor | None = None, seed: int = 0, **options: Any
    ) -> analysis.Result:
        """Run an analysis by its name, a plugin's too, as `posthoc-inn analyze` does.

        Args:
            name: "attack", "edits", "concept-relevance", ...; `posthoc-inn analyze --list` prints all.
            data: Images as given to `fit`: a loader, data set or tensor.
            z: Representations (B, *z_shape) instead of images, for analyses that need nothing else.
            seed: Of everything random.
            **options: The analysis' own.

        Raises:
            UnknownNameError: There is no such analysis.
            ConfigError: An option is not the analysis' own, or it needs images and got z.
            NotFittedError: It needs e, and there is none; or nothing was fitted.
        """
        look = None if data is None or z is not None else analysis.outside_of(self.pipeline, data, seed=seed)
        if look is not None and look.images:
            warnings.warn(look.told, OutsideWarning, stacklevel=3)
        with warnings.catch_warnings():
            if look is not None:
                warnings.simplefilter("ignore", OutsideWarning)  # told already, by their number in the data
            result: analysis.Result = run_analysis(self, name, data, z=z, seed=seed, options=options)
        return result

    @in_plain_torch
    def outside(self, images: Tensor | None = None, *, z: Tensor | None = None) -> analysis.Outside | None:
        """Return which images the layer sees as unlike those that t was fitted to; None in bundles that cannot tell.

        Args:
            images: As given to `fit`, (B, C, H, W).
            z: Representations (B, *z_shape) instead of images.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OutsideWarning)
            return analysis.outside(self.pipeline, self.pipeline.z_of(images, z))

    @in_plain_torch
    def report(self, path: str | Path, data: Any = None, *, class_names: Sequence[str] = ()) -> Path:
        """Write one self-contained HTML page: samples, figures and what they mean, concepts, curves, settings.

        Args:
            path: Of the page, which is replaced.
            data: Images as given to `fit`, for a loaded interpreter or to show others; the fit's held-out ones by
                default.
            class_names: Of the model's classes, in order.

        Returns:
            The path.

        Raises:
            NotFittedError: Before `fit`, or without `data` where no images were kept.
            DataError: The page cannot be written, or the images cannot be used.
        """
        pipeline = self.pipeline
        if data is not None:
            images, v = BatchSource(data, batch_size=128, seed=self.seed).first(EXAMPLES), None
        elif hasattr(self, "examples_"):
            images, v = self.examples_.images, self.examples_.v
        else:
            raise NotFittedError("This Interpreter keeps no images (it was loaded, or not measured): pass data=.")
        words = ReportWords(class_names=tuple(class_names))
        write_fitted_report(self, images.to(pipeline.device), v, path, words=words)
        return Path(path)

    @in_plain_torch
    def explained_by_invariances(
        self, data: Any = None, *, z: Tensor | None = None, samples: int = 10_000, seed: int = 0
    ) -> analysis.ExplainedByInvariances:
        """Return the share of the latent's variance that the layer's invariances explain (MSC eq. 19), and its floor.

        Args:
            data: Images as given to `fit`: a loader, data set or tensor.
            z: Representations (B, *z_shape) instead of images; the floor is not known then.
            samples: Draws in all.
            seed: Seed of v.
        """
        given, encoded = self.pipeline.rows_from(data, z, limit=max(2, samples // 20), seed=seed)
        return analysis.explained_by_invariances(self.pipeline, given, encoded=encoded, samples=samples, seed=seed)

    @in_plain_torch
    def concept_relevance(
        self, data: Any = None, *, z: Tensor | None = None, samples: int = 10_000, seed: int = 0
    ) -> analysis.ConceptRelevance:
        """Return how much of each concept the layer determines (MSC eq. 20), with the first-order share beside it.

        Args:
            data: Images as given to `fit`: a loader, data set or tensor.
            z: Representations (B, *z_shape) instead of images.
            samples: Latents in all: images × draws of v.
            seed: Of v.

        Raises:
            NotFittedError: Nothing was fitted, or there is no e.
        """
        model = self.concept_model
        given = self.pipeline.z_from(data, z, limit=max(3, samples // 10), seed=seed)
        return analysis.concept_relevance(self.pipeline, model, given, samples=samples, seed=seed)

    @in_plain_torch
    def pair_shares(
        self,
        data: Any,
        concepts: Any = None,
        *,
        concept_options: Mapping[str, Any] | None = None,
        samples: int = 10_000,
        seed: int = 0,
    ) -> analysis.PairShares:
        """Return what of each concept the layer determines, by pairs of images that share it.

        Args:
            data: Images as given to `fit`, best such as e was not trained with.
            concepts: Their concepts, as `fit` takes them, the same ones in the same order; by default the attributes of
                the data that are called as e's concepts are, or its labels.
            concept_options: Of a table or of a registered concept source.
            samples: Latents in all: images × draws of v.
            seed: Of the choice of images, and of all draws.

        Raises:
            NotFittedError: Nothing was fitted, or there is no e.
            PosthocInnError: The concepts cannot be had of these data, or are others than e's.
        """
        model = self.concept_model
        names = [name for name in model.names if name != RANDOM]
        wanted = concepts or ("labels" if names == ["class"] else names)
        return shares_of_data(self.pipeline, model, data, wanted, options=concept_options, samples=samples, seed=seed)

    # ---- keeping

    @in_plain_torch
    def save(self, directory: str | Path, *, overwrite: bool = False, store_model: bool = False) -> Path:
        """Write a bundle: safetensors, JSON and a card, to a temporary directory that is renamed in the end.

        Args:
            directory: Where to.
            overwrite: Replace the bundle that is there.
            store_model: Store the explained model's state too.

        Raises:
            NotFittedError: Before `fit`.
            BundleError: `directory` exists and `overwrite` is false, or cannot be written.
        """
        pipeline = self.pipeline
        bundle = Bundle(
            extractor=self.extractor.to_dict(),
            model_fingerprint=fingerprint(self.model),
            model_class=type(self.model).__name__,
            adapter=pipeline.adapter,
            autoencoder=pipeline.autoencoder,
            flow=pipeline.flow,
            z_shape=pipeline.z_shape,
            metrics=self._told_metrics(),
            origin=dict(self.origin),
            model_tensors=describe_tensors(self.model),
            concepts=self.__dict__.get("concept_model_"),
            world=pipeline.world,
        )
        state = self.model.state_dict() if store_model else None
        return save_bundle(bundle, Path(directory), overwrite=overwrite, model_state=state)

    def _told_metrics(self) -> dict[str, Any]:
        metrics, noise = getattr(self, "metrics_", {}), self.pipeline.code_noise
        return metrics if noise is None or "code_noise" in metrics else {**metrics, "code_noise": noise.to_dict()}

    @classmethod
    @in_plain_torch
    def load(
        cls,
        directory: str | Path,
        *,
        model: nn.Module,
        autoencoder: nn.Module | None = None,
        device: str = "auto",
        allow_other_model: bool = False,
    ) -> Interpreter:
        """Load a bundle for the model it was fitted to.

        Args:
            directory: What `save` wrote.
            model: The same trained model; a bundle can never name code to import.
            autoencoder: The user's own, when the bundle was fitted with one that is not built in.
            device: "auto" is where the model is.
            allow_other_model: Accept a model with other weights.

        Raises:
            BundleError: The bundle is damaged, newer, or belongs to another model; each with its own message.
        """
        bundle = load_bundle(Path(directory), autoencoder=autoencoder)
        if not allow_other_model and not bundle.is_for(model):
            raise bundle.wrong_model(model)
        options = dict(bundle.extractor)
        where = choose_device(device, like=model)
        threshold = options.pop("threshold", None)
        self = cls(model, options.pop("layer"), **options, device=device)
        self.extractor.threshold = threshold
        self.spec = bundle.adapter.spec if bundle.adapter.normalization is None else None
        self.adapter_ = bundle.adapter
        self.autoencoder_ = as_autoencoder(bundle.autoencoder.to(where).eval())
        self.flow_ = bundle.flow.to(where).eval()
        if bundle.concepts is not None:
            self.concept_model_ = bundle.concepts.to(where).eval()
        self.metrics_ = bundle.metrics
        self.origin = bundle.origin
        world = None if bundle.world is None else bundle.world.to(where)
        noise = CodeNoise.read(bundle.metrics.get("code_noise"), latent_shape_of(self.autoencoder_))
        self.pipeline_ = Pipeline(self.extractor, bundle.adapter, self.autoencoder_, self.flow_, where, world, noise)
        return self

    def __repr__(self) -> str:
        state = "fitted" if hasattr(self, "pipeline_") else "not fitted"
        return f"Interpreter({type(self.model).__name__}, layer={self.layer!r}, {state})"

    def _repr_html_(self) -> str:
        values: dict[str, Any] = {"layer": self.layer or "output", "fitted": hasattr(self, "pipeline_")}
        if hasattr(self, "pipeline_"):
            values["shape of z"] = "×".join(map(str, self.pipeline_.z_shape))
            values["size of z_bar and v"] = self.pipeline_.latent_dim
            if "concept_model_" in self.__dict__:
                values["concepts"] = listed([name for name in self.concept_model_.names if name != RANDOM], 20)
            signs = {"good": "good", "fair": "fair", "poor": "poor", "info": ""}
            found = [f for f in findings(getattr(self, "metrics_", {})) if f.label in KEY]
            values |= {f.label: f"{f.value} {signs[f.status]}".strip() for f in found}
        return html_table(f"Interpreter of {type(self.model).__name__}", values)
