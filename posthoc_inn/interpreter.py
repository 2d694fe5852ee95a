"""The facade: one object that attaches to a trained model, fits E, D and t, and answers questions about a layer."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from posthoc_inn import analysis
from posthoc_inn.autoencoders import Autoencoder, as_autoencoder
from posthoc_inn.bundle import Bundle, load_bundle, save_bundle
from posthoc_inn.concept_questions import ConceptQuestions, is_share, request
from posthoc_inn.concepts import ConceptModel
from posthoc_inn.config import AutoencoderConfig, ConceptConfig, FitConfig, ImageSpec, Precision, preset
from posthoc_inn.errors import (
    ConfigError,
    DataError,
    NotFittedError,
    PosthocInnError,
    Problems,
    ShapeError,
)
from posthoc_inn.features import LayerExtractor
from posthoc_inn.fit.preparing import check_space, configured, make_adapter, make_autoencoder
from posthoc_inn.fit.stages import Fit, FitResult, Plan
from posthoc_inn.images import BatchSource, split
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.plugins import get_plugin_manager
from posthoc_inn.plugins.hookspecs import FitEvent
from posthoc_inn.progress import Reporter, make_reporter
from posthoc_inn.training.precision import check_precision, choose_device, choose_precision
from posthoc_inn.weights import describe_tensors, fingerprint


class Interpreter(ConceptQuestions):
    """Recovers what a layer of a trained model has thrown away, and shows both as images (MSC).

    The model's weights, buffers, flags and hooks are left as they are. With `spec`, images given to this object are
    canonical, in [0, 1], and the model gets them resized and normalised by `spec`; without it they are what
    the model eats, unchanged, and `mean` and `std` (or what is recognised) say how to get back to [0, 1].

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
        autoencoder: A trained one to share, or the shape of a new one; None for the built-in one.
        concepts: A trained e to share, over latents of that autoencoder.
        preset: Name of a preset, or a `FitConfig`.
        image_size: Side of the autoencoder's images in pixels; None to choose from the images.
        device: "auto" is where the model is.
        precision: "auto", "32" or "bf16", for training.
        seed: Of everything random.

    Attributes:
        autoencoder_: E and D, after `fit`.
        flow_: t, after `fit`.
        concepts_: e with its concepts' names, where it was fitted or given.
        adapter_: How images become model inputs and pictures.
        relevance_: What the layer knows of each concept, measured on held-out images after `fit`.
        metrics_: What `metrics.json` holds.
        history_: Curve of t.

    >>> from posthoc_inn.testing import models
    >>> interpreter = Interpreter(models.small_cnn(), layer="features.3")
    >>> interpreter.sample(torch.rand(2, 3, 28, 28), n=2)
    Traceback (most recent call last):
    ...
    posthoc_inn.errors.NotFittedError: This Interpreter is not fitted: call fit(loader) first, or Interpreter.load(...).
    """

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
        autoencoder: nn.Module | AutoencoderConfig | None = None,
        concepts: ConceptModel | None = None,
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
        if concepts is not None:
            if not isinstance(autoencoder, nn.Module):
                raise ConfigError("A trained e needs the trained autoencoder that it was fitted over: give both.")
            check_space(concepts, as_autoencoder(autoencoder).latent_dim)
            self.concepts_ = concepts
        self.device, self.precision, self.seed = device, precision, seed
        self.extractor = LayerExtractor(model, layer, output=output, call=call, tokens=tokens, prediction=prediction)

    # ---- learning

    def fit(
        self,
        data: Any,
        *,
        held_out: Any = 0.1,
        concepts: Any = None,
        held_out_concepts: Any = None,
        draws: int = 1,
        epochs: float | None = None,
        steps: int | None = None,
        autoencoder_steps: int | None = None,
        concept_steps: int | None = None,
        out: str | Path | None = None,
        resume: bool = False,
        progress: bool | Reporter | None = None,
        announce: Callable[[Plan], None] | None = None,
        evaluate: bool = True,
    ) -> Interpreter:
        """Train the autoencoder (unless a trained one was given), t, and with `concepts` e too.

        Labels are never needed for the first two.

        Args:
            data: A DataLoader, data set or tensor of x, (x, y) or dicts.
            held_out: The same for images kept aside, or the share of `data` that is.
            concepts: What pairs of images have in common: "labels" (of the data), "attributes" (the data set's own) or
                a list of their names, a CSV file, a mapping from names to values with one an image, a registered
                concept source's name, or any object with `names` and `pairs(n, seed=)`, such as
                `posthoc_inn.concepts.GivenPairs`.
            held_out_concepts: The same for held-out images that are other data, unknown to `concepts`.
            draws: Passes over randomly augmented data, each cached as a draw of its own.
            epochs: Passes of t over the cached rows; instead of the preset's steps.
            steps: Steps of t; instead of the preset's.
            autoencoder_steps: Steps of the autoencoder; instead of the preset's.
            concept_steps: Steps of e; instead of the preset's.
            out: Directory for checkpoints and cached rows, so that the run can be resumed.
            resume: Go on from what is in `out`.
            progress: Show a progress bar; None for when standard error is a terminal.
            announce: Called with what is about to be done, before it is.
            evaluate: Measure on held-out images afterwards, into `metrics_`.

        Returns:
            This object.

        Raises:
            ConfigError: An argument is wrong; all problems at once.
            DataError: The images cannot be used, or their normalisation cannot be recognised.
            LayerNotFoundError: The layer is never reached.
            TrainingError: Training diverged, or there is nothing fitting to resume.
            KeyboardInterrupt: After Ctrl-C, once a checkpoint has been written.
        """
        self._check_arguments(
            draws=draws,
            epochs=epochs,
            steps=steps,
            autoencoder_steps=autoencoder_steps,
            concept_steps=concept_steps,
            concepts=concepts,
            out=out,
            resume=resume,
        )
        reporter = (
            progress if isinstance(progress, Reporter) else make_reporter(progress, stages=6 + (concepts is not None))
        )
        manager = get_plugin_manager()
        where = str(out) if out is not None else None
        manager.fit_started(FitEvent("fit", where, {"layer": self.layer}))
        try:
            fit = self._prepare(
                data,
                held_out,
                draws,
                epochs,
                steps,
                autoencoder_steps,
                out,
                resume,
                reporter,
                lambda stage, info: manager.fit_stage_finished(FitEvent(stage, where, info)),
                concepts=(concepts, held_out_concepts),
                concept_steps=concept_steps,
            )
            if announce is not None:
                announce(fit.plan())
            with reporter:
                self._learned(fit, fit.run())
                if evaluate:
                    reporter.stage("measuring on held-out images", None)
                    started = time.perf_counter()
                    self.metrics_ = self._measure()
                    self.seconds_["measuring"] = time.perf_counter() - started
            fit.clean()
        except (PosthocInnError, KeyboardInterrupt) as error:
            manager.fit_failed(FitEvent("fit", where, {"error": f"{type(error).__name__}: {error}"}))
            raise
        manager.fit_finished(FitEvent("fit", where, {"seconds": sum(fit.seconds.values())}))
        return self

    def plan(
        self,
        data: Any,
        *,
        held_out: Any = 0.1,
        concepts: Any = None,
        held_out_concepts: Any = None,
        draws: int = 1,
        epochs: float | None = None,
        steps: int | None = None,
        autoencoder_steps: int | None = None,
        concept_steps: int | None = None,
        out: str | Path | None = None,
    ) -> Plan:
        """Return what `fit` with these arguments would do, and how long it would take; it trains nothing."""
        self._check_arguments(
            draws=draws,
            epochs=epochs,
            steps=steps,
            autoencoder_steps=autoencoder_steps,
            concept_steps=concept_steps,
            concepts=concepts,
            out=out,
            resume=False,
        )
        return self._prepare(
            data, held_out, draws, epochs, steps, autoencoder_steps, out, False, Reporter(), lambda stage, info: None,
            concepts=(concepts, held_out_concepts), concept_steps=concept_steps,
        ).plan()  # fmt: skip

    @property
    def _preset(self) -> FitConfig:
        return preset(self.preset) if isinstance(self.preset, str) else self.preset

    def _check_arguments(self, **given: Any) -> None:
        problems = Problems("Interpreter.fit")
        for name in ("steps", "autoencoder_steps", "concept_steps"):
            problems.check(given[name] is None or given[name] >= 1, f"{name} must be at least 1, got {given[name]}")
        problems.check(
            given["epochs"] is None or given["epochs"] > 0, f"epochs must be positive, got {given['epochs']}"
        )
        has_both = given["concepts"] is not None and hasattr(self, "concepts_")
        problems.check(not has_both, "this Interpreter has a trained e already; give concepts here or there, not both")
        problems.check(given["epochs"] is None or given["steps"] is None, "give epochs or steps, not both")
        problems.check(given["draws"] >= 1, f"draws must be at least 1, got {given['draws']}")
        problems.check(not given["resume"] or given["out"] is not None, "resume needs out, the directory to go on from")
        problems.check(
            self.spec is None or (self.mean is None and self.std is None),
            "give spec (images in [0, 1]) or mean and std (images as the model eats them), not both",
        )
        problems.check((self.mean is None) == (self.std is None), "mean and std go together")
        problems.raise_if_any()

    def _prepare(
        self,
        data: Any,
        held_out: Any,
        draws: int,
        epochs: float | None,
        steps: int | None,
        autoencoder_steps: int | None,
        out: str | Path | None,
        resume: bool,
        reporter: Reporter,
        on_stage: Callable[[str, dict[str, Any]], None],
        *,
        concepts: tuple[Any, Any] = (None, None),
        concept_steps: int | None = None,
    ) -> Fit:
        """Check everything that can be wrong, cheaply, and put the fit together."""
        wanted = None
        if concepts[0] is not None:
            data, held_out, wanted = request(data, held_out, *concepts, seed=self.seed)
        elif is_share(held_out):
            data, held_out = split(data, float(held_out), seed=self.seed)
        source = BatchSource(data, batch_size=128, seed=self.seed).check()
        kept = BatchSource(held_out, batch_size=128, seed=self.seed).check()
        if source.image_shape[0] != kept.image_shape[0]:
            raise DataError(
                f"Training images have {source.image_shape[0]} channels, held-out ones {kept.image_shape[0]}."
            )
        for note in source.notes:
            reporter.note(note)
        device = choose_device(self.device, like=self.model)
        self.adapter_ = make_adapter(
            source, self.autoencoder, spec=self.spec, mean=self.mean, std=self.std, image_size=self.image_size,
            reporter=reporter,
        )  # fmt: skip
        example = source.first(4).to(device)
        self.probe_ = self.extractor.probe(self.adapter_.to_model(example))
        if self.probe_.note:
            reporter.note(self.probe_.note)
        autoencoder, is_fitted = make_autoencoder(self.autoencoder, self._preset, self.adapter_, self.seed)
        config = configured(
            self._preset, autoencoder, length=source.length, draws=draws, epochs=epochs, steps=steps,
            autoencoder_steps=autoencoder_steps, concept_steps=concept_steps, seed=self.seed,
        )  # fmt: skip
        return Fit(
            extractor=self.extractor,
            adapter=self.adapter_,
            autoencoder=autoencoder,
            autoencoder_is_fitted=is_fitted,
            config=config,
            z_shape=self.probe_.z_shape,
            data=source,
            held_out=kept,
            draws=draws,
            device=device,
            precision=choose_precision(self.precision, device),
            out=Path(out) if out is not None else None,
            resume=resume,
            reporter=reporter,
            on_stage=on_stage,
            concepts=wanted,
            fitted_concepts=getattr(self, "concepts_", None) if wanted is None else None,
        )

    def _concept_config(self) -> ConceptConfig:
        return self._preset.concepts

    def _learned(self, fit: Fit, result: FitResult) -> None:
        self.autoencoder_: Autoencoder = result.autoencoder
        self.flow_ = result.flow
        self.history_, self.autoencoder_history_ = result.flow_history, result.autoencoder_history
        self.fit_config_ = fit.config
        self.pipeline_ = fit.pipeline()
        if result.concepts is not None:
            self.concepts_ = result.concepts.model
            self.concept_fit_ = result.concepts
        self.seconds_ = result.seconds
        self.rows_ = result

    def _measure(self) -> dict[str, Any]:
        found = analysis.measure(
            self.pipeline_,
            self.rows_.train,
            self.rows_.held_out,
            self.history_,
            self.autoencoder_history_,
            seed=self.seed,
        ) | {
            **self._concept_metrics(),
            "layer": self.layer,
            "z_shape": list(self.probe_.z_shape),
            "is_cut": self.probe_.is_cut,
            "seconds": self.seconds_,
            "threads": self.rows_.threads,
            "fit": self.fit_config_.to_dict(),
        }
        if hasattr(self, "concept_fit_"):
            found["training"]["e"] = self.concept_fit_.history.to_dict()
        return found

    def _concept_metrics(self) -> dict[str, Any]:
        concepts = getattr(self, "concepts_", None)
        if concepts is None or concepts.space != "z_bar":
            return {}
        held_out = self.rows_.held_out
        z = held_out["z"].rows(torch.arange(min(len(held_out), 1000)))
        self.relevance_ = analysis.concept_relevance(self.pipeline_, concepts, z, seed=self.seed)
        found: dict[str, Any] = {
            "names": list(concepts.names),
            "sizes": list(concepts.factor_dims),
            "relevance": self.relevance_.to_dict(),
        }
        fit = getattr(self, "concept_fit_", None)
        if fit is not None:
            found["scores"] = fit.scores
        return {"concepts": found}

    # ---- asking

    @property
    def pipeline(self) -> Pipeline:
        """The fitted parts.

        Raises:
            NotFittedError: Before `fit`.
        """
        if not hasattr(self, "pipeline_"):
            raise NotFittedError("This Interpreter is not fitted: call fit(loader) first, or Interpreter.load(...).")
        return self.pipeline_

    def _checked(self, images: Tensor) -> Tensor:
        if not isinstance(images, Tensor) or images.ndim != 4:
            got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ShapeError(f"Images must be a tensor (B, C, H, W), got {got}.")
        return images

    @torch.no_grad()
    def sample(
        self,
        images: Tensor,
        n: int = 8,
        *,
        v: Tensor | None = None,
        seed: int = 0,
        precision: Precision = "32",
    ) -> Tensor:
        """Draw images that the layer cannot tell from the given ones: D(t⁻¹(v given Φ(x))) (MSC eq. 2).

        Args:
            images: As given to `fit`, (B, C, H, W).
            n: N, samples per image.
            v: Invariances to use instead of drawing them: (N, D) for all images, or (B, N, D).
            seed: Seed of v.
            precision: Of t's matrix products: "32"; "bf16", faster where the machine has it, for samples that differ
                by `metrics_["likelihood"]["bf16_error"]`; or "auto", bf16 where it is faster.

        Returns:
            Pictures (B, N, C, H, W) in [0, 1], of the autoencoder's size.

        Raises:
            NotFittedError: Before `fit`.
            ShapeError: A shape is wrong.
            ConfigError: n is less than 1, or there is no such precision.
        """
        pipeline = self.pipeline
        images = self._checked(images)
        chosen = choose_precision(precision, pipeline.device)
        if n < 1:
            raise ConfigError(f"n must be at least 1, got {n}.")
        context = pipeline.context(pipeline.features(images))
        if v is None:
            generator = torch.Generator().manual_seed(seed)
            v = torch.randn(len(images), n, pipeline.latent_dim, generator=generator)
        latents = pipeline.sample_latents(context, v, precision=chosen)
        pictures = pipeline.decode(latents.flatten(0, 1))
        return pictures.reshape(*latents.shape[:2], *pictures.shape[1:])

    @torch.no_grad()
    def invariances(self, images: Tensor) -> Tensor:
        """Return v = t(E(x) given Φ(x)), shape (B, D), for images (B, C, H, W), at the mean of the encoder."""
        pipeline = self.pipeline
        images = self._checked(images)
        mean, _ = pipeline.encode(images)
        return pipeline.invariances(mean, pipeline.context(pipeline.features(images)))[0]

    @torch.no_grad()
    def reconstruct(self, images: Tensor, *, z_of: Tensor | None = None) -> Tensor:
        """Return D(t⁻¹(v given z)), pictures (B, C, H, W) in [0, 1], with v of `images`.

        Args:
            images: As given to `fit`, (B, C, H, W); their v is used.
            z_of: Images whose z is used instead of that of `images`: what one has thrown away, recombined with
                what the layer keeps of the other.
        """
        pipeline = self.pipeline
        v = self.invariances(images)
        context = pipeline.context(pipeline.features(self._checked(images if z_of is None else z_of)))
        return pipeline.decode(pipeline.sample_latents(context, v[:, None]).flatten(0, 1))

    @torch.no_grad()
    def log_likelihood(self, images: Tensor, *, seed: int = 0) -> Tensor:
        """Return log p(z_bar given z), shape (B,), in nats with all constants, at a draw of the stochastic encoder."""
        pipeline = self.pipeline
        mean, std = pipeline.encode(self._checked(images))
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed)).to(mean)
        context = pipeline.context(pipeline.features(images))
        return -pipeline.invariances(mean + std * noise, context)[1]

    def explained_by_invariances(
        self, data: Any, *, samples: int = 10_000, seed: int = 0
    ) -> analysis.ExplainedByInvariances:
        """Return the share of the latent's variance that the layer's invariances explain (MSC eq. 19).

        Args:
            data: Images as given to `fit`: a loader, data set or tensor.
            samples: Draws in all.
            seed: Seed of v and of the bootstrap.
        """
        pipeline = self.pipeline
        source = BatchSource(data, batch_size=128, limit=max(2, samples // 20))
        z = torch.cat([pipeline.features(batch["images"]) for batch in source.batches()])
        return analysis.explained_by_invariances(pipeline, z, samples=samples, seed=seed)

    # ---- keeping

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
        state = self.model.state_dict() if store_model else None
        return save_bundle(self._bundle(), Path(directory), overwrite=overwrite, model_state=state)

    def _bundle(self) -> Bundle:
        pipeline = self.pipeline
        return Bundle(
            extractor=self.extractor.to_dict(),
            model_fingerprint=fingerprint(self.model),
            model_class=type(self.model).__name__,
            adapter=pipeline.adapter,
            autoencoder=pipeline.autoencoder,
            flow=pipeline.flow,
            z_shape=pipeline.flow.conditioner.config.z_shape,
            metrics=getattr(self, "metrics_", {}),
            origin=dict(self.origin),
            model_tensors=describe_tensors(self.model),
            concepts=getattr(self, "concepts_", None),
        )

    @classmethod
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
        self = cls(model, options.pop("layer"), **options, device=device)
        self.spec = bundle.adapter.spec if bundle.adapter.normalization is None else None
        self.adapter_ = bundle.adapter
        self.autoencoder_ = as_autoencoder(bundle.autoencoder.to(where).eval())
        self.flow_ = bundle.flow.to(where).eval()
        if bundle.concepts is not None:
            self.concepts_ = bundle.concepts.to(where).eval()
        self.metrics_ = bundle.metrics
        self.origin = bundle.origin
        self.pipeline_ = Pipeline(self.extractor, bundle.adapter, self.autoencoder_, self.flow_, where)
        return self

    def __repr__(self) -> str:
        state = "fitted" if hasattr(self, "pipeline_") else "not fitted"
        return f"Interpreter({type(self.model).__name__}, layer={self.layer!r}, {state})"
