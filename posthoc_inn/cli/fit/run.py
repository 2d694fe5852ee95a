"""What `posthoc-inn fit` does: find model and images, tell the plan, train, measure, write the run."""

from __future__ import annotations

import json
import time
from typing import Any, Literal

import torch
from torch import Tensor

from posthoc_inn.analysis import model_accuracy
from posthoc_inn.cli.fit import classifier as classifier_stage
from posthoc_inn.cli.fit.directory import RunDirectory
from posthoc_inn.cli.fit.inputs import (
    check_canonical,
    given_autoencoder,
    open_autoencoder,
    open_images,
    open_model,
)
from posthoc_inn.cli.fit.memory import keep_freed_memory
from posthoc_inn.cli.fit.options import FitOptions, choose, title_of
from posthoc_inn.cli.fit.results import report_words, show_result, write_pictures
from posthoc_inn.cli.models import NONE, TRAIN, backbone_spec, missing_layer, open_device
from posthoc_inn.cli.terminal import choose_reporter, out, print_lines
from posthoc_inn.config import TrainConfig
from posthoc_inn.errors import LayerNotFoundError, ModelError, PosthocInnError
from posthoc_inn.files import plain
from posthoc_inn.fit import Fit, FitRequest, Plan
from posthoc_inn.fit.preparing import choose_image_size
from posthoc_inn.images import BatchSource, apply_spec
from posthoc_inn.interpreter import Interpreter
from posthoc_inn.plugins import get_plugin_manager
from posthoc_inn.training.classifier import CLASSIFIER_TRAINING
from posthoc_inn.training.precision import choose_precision
from posthoc_inn.training.threads import using_threads

CHECKED = 1000
"""Held-out images that the model's accuracy is measured on."""
STAGES = 6
"""Of a fit, measuring and writing included; two more where the model is trained, one less with a given autoencoder."""


def fit_run(options: FitOptions) -> None:
    """Run the whole command.

    Raises:
        PosthocInnError: Whatever a user can put right.
        KeyboardInterrupt: After Ctrl-C.
    """
    keep_freed_memory()
    with using_threads(options.threads or torch.get_num_threads()):
        Run(options).go()


class Run:
    """One run: everything is opened and checked when it is made, and nothing written before `go`.

    Args:
        options: The command's options.
    """

    def __init__(self, options: FitOptions) -> None:
        self.options = options
        self.directory = RunDirectory(options.out)
        manager = get_plugin_manager()
        self.choice = choice = choose(options, manager)
        self.trains = choice.weights == TRAIN
        self.device = open_device(options.device)
        self.precision: Literal["32", "bf16"] = options.resolved_precision or choose_precision(
            options.precision, self.device
        )
        spec = None
        if choice.backbone is not None and not self.trains:
            spec = backbone_spec(
                manager, choice.backbone, choice.weights, input_size=options.input_size, mean=None, std=None
            )
        self.given = given_autoencoder(options, manager)
        self.images = open_images(options, choice.data, choice.draws, manager, spec, self.given)
        self.source = BatchSource(self.images.train, batch_size=128, seed=options.seed).check()
        self.kept = BatchSource(self.images.held_out, batch_size=128, seed=options.seed).check()
        check_canonical(self.source, self.images.name)
        channels = self.source.image_shape[0]
        self.model = open_model(options, choice, manager, self.images, channels)
        self.model.module.to(self.device)
        self.interpreter = self._interpreter(channels)
        self._check_model()
        stages = (
            STAGES
            + 2 * self.trains
            + (options.concepts is not None)
            + options.refits
            - isinstance(self.interpreter.autoencoder, torch.nn.Module)
        )
        self.reporter = choose_reporter(stages, quiet=options.quiet)

    def _interpreter(self, channels: int) -> Interpreter:
        options, choice = self.options, self.choice
        size = options.image_size or choose_image_size(*self.source.image_shape[1:])
        try:
            return Interpreter(
                self.model.module,
                choice.layer,
                spec=self.model.spec,
                prediction_kind=options.prediction_kind,
                autoencoder=open_autoencoder(options, self.given, choice.config, size, channels),
                preset=choice.config,
                image_size=size,
                device=str(self.device),
                precision=self.precision,
                seed=options.seed,
            )
        except LayerNotFoundError as error:
            which = f"--backbone {choice.backbone}" if choice.backbone else f"--model {options.model}"
            raise missing_layer(error, f"posthoc-inn layers {which}") from None

    def _check_model(self) -> None:
        """Make sure that the model takes the images, before anything long begins."""
        try:
            with torch.no_grad():
                self.interpreter.extractor.features(self._as_given(self.source.first(2)))
        except ModelError as error:
            advice = (
                "--input-size"
                if self.model.spec.channels == self.source.image_shape[0]
                else "--input-size, or channels"
            )
            raise ModelError(
                f"{self.model.name}: {str(error).rstrip('.')}. On the command line: pass another {advice}."
            ) from error
        if self.trains:
            classifier_stage.check_outputs(self.model, self.source, self.device)

    def _request(self) -> FitRequest:
        options = self.options
        return FitRequest(
            data=self.source,
            held_out=self.kept,
            draws=self.images.draws,
            epochs=options.epochs,
            steps=options.steps,
            autoencoder_steps=options.autoencoder_steps,
            concept_steps=options.concept_steps,
            concepts=options.concepts,
            concept_options=dict(options.concept_options),
            refits=options.refits,
            image_metrics=tuple(options.image_metrics),
            out=options.out,
            resume=options.resume,
        )

    def go(self) -> None:
        """Say what will be done, train, measure and write."""
        self.say(*self._introduction())
        # Prepared and timed before anything is written or removed, so that whatever is wrong is found by now.
        fit = self.interpreter.prepare(self._request(), reporter=self.reporter)
        self._show(fit.plan())
        with fit.locked():
            self._do(fit)

    def _do(self, fit: Fit) -> None:
        options = self.options
        if not options.resume:
            self.directory.clear()
            self.directory.begin(options.of_the_run(), precision=self.precision)
        trained = None
        if self.trains:
            trained = self._train_classifier()
            fit.probe_again()
        accuracy = self._accuracy(fit.parts.extractor.kind)
        self._learn(fit)
        self._finish(trained, accuracy)

    # ---- telling

    def say(self, *lines: str) -> None:
        """Print lines, unless JSON was asked for."""
        if not self.options.as_json:
            print_lines(out(), lines)

    def _introduction(self) -> list[str]:
        options, choice, spec = self.options, self.choice, self.model.spec
        lines = []
        if options.data is None:
            lines.append(
                "No --data was given: using the embedded example, the 1,797 handwritten digits that scikit-learn "
                "ships, split into training and held-out images, at 28x28 pixels in random colours."
            )
        if options.backbone is None and options.model is None:
            lines.append(
                f"No --backbone or --model was given: training {title_of(choice.backbone)} on them first, as "
                '"your model".'
            )
        lines += [f"Note: {note}" for note in (*choice.notes, *self.model.notes)]
        config = self.classifier_config
        weights = {
            TRAIN: f"trained here first, {config.steps:,} steps of {config.batch_size}",
            NONE: "random weights",
            None: "its own weights",
        }.get(choice.weights, f"weights {choice.weights}")
        side = f"{spec.size[0]}x{spec.size[1]} px, " if spec.size else ""
        normalised = f"mean {_numbers(spec.mean)}, std {_numbers(spec.std)}"
        return [
            *lines,
            f"run          {options.out}" + (" (going on)" if options.resume else ""),
            f"data         {self.images.told}",
            f"model        {self.model.name}, {weights}; gets {side}{normalised}",
        ]

    def _show(self, plan: Plan) -> None:
        if self.options.as_json:
            return
        lines = list(plan.lines)
        if self.trains:
            first = classifier_stage.estimate(
                self.model, self.source, self.classifier_config, self.device, self.precision
            )
            lines.append(
                f"             and before that {first / 60:.1f} minutes for the model: "
                f"{(sum(plan.seconds.values()) + first) / 60:.1f} in all"
            )
        self.say(*lines, "")

    # ---- doing

    @property
    def classifier_config(self) -> TrainConfig:
        """How the model is trained, where it is."""
        config = CLASSIFIER_TRAINING.replace(seed=self.options.seed)
        steps = self.options.classifier_steps
        if steps is None:
            return config
        return config.replace(steps=steps, eval_every=max(1, min(config.eval_every, steps // 4)))

    def _train_classifier(self) -> classifier_stage.Trained:
        return classifier_stage.train_classifier(
            self.model,
            self.source,
            self.kept,
            config=self.classifier_config,
            device=self.device,
            precision=self.precision,
            checkpoint=self.directory.classifier_checkpoint,
            resume=self.options.resume,
            reporter=self.reporter,
        )

    def _accuracy(self, kind: str) -> dict[str, Any]:
        """Return the model's accuracy on held-out labels, where it has the same classes; warn when it guesses."""
        found = model_accuracy(self._predict, self.kept, limit=CHECKED, classes=len(self.images.classes), kind=kind)
        if found is None:
            return {}
        accuracy, guessing = found["accuracy"], found["chance"]
        if accuracy < 1.5 * guessing and self.choice.weights != NONE:
            advice = (
                "Train it longer (--classifier-steps) or with another --seed."
                if self.trains
                else "Are its weights, --mean/--std and the order of the classes right?"
            )
            self.reporter.note(
                f"Warning: the model is right on only {100 * accuracy:.1f} % of {found['images']} held-out images, "
                f"hardly better than guessing. {advice}"
            )
        self.say(f"{title_of(self.model.name)} is right on {100 * accuracy:.1f} % of the held-out images.")
        return found

    def _predict(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.interpreter.extractor.predict(self._as_given(images))

    def _as_given(self, images: Tensor) -> Tensor:
        return apply_spec(images.to(self.device), self.model.spec)

    def _learn(self, fit: Fit) -> None:
        """Train and measure; what is trained is saved before it is measured."""
        is_saved = False

        def trained() -> None:
            nonlocal is_saved
            self.interpreter.origin = self.model.origin
            self.interpreter.save(self.directory.bundle, overwrite=True, store_model=self.trains)
            is_saved = True

        try:
            self.interpreter.learn(fit, trained=trained)
        except PosthocInnError as error:
            if not is_saved:
                raise
            raise type(error)(
                f"{error} This happened while the fit was measured: what was trained is in {self.directory.bundle}; "
                "with --resume it is measured again."
            ) from error

    def _save(self) -> None:
        """Write the bundle, and its figures beside it."""
        metrics = json.dumps(self.interpreter.metrics_, indent=2, allow_nan=False)
        self.interpreter.save(self.directory.bundle, overwrite=True, store_model=self.trains)
        self.directory.write("metrics.json", metrics + "\n")

    def _finish(self, trained: classifier_stage.Trained | None, accuracy: dict[str, Any]) -> None:
        interpreter, options = self.interpreter, self.options
        started = time.perf_counter()
        self.reporter.stage("writing bundle and report", None)
        metrics = dict(interpreter.metrics_)
        seconds = dict(metrics.get("seconds") or {})
        if trained is not None:
            # A session that was killed left no time but its checkpoint's.
            seconds = {"classifier": max(trained.seconds, trained.history.seconds), **seconds}
            metrics["training"] = {**metrics.get("training", {}), "classifier": trained.history.to_dict()}
        metrics["seconds"] = {name: round(value, 3) for name, value in seconds.items()}
        metrics["model"] = {"name": self.model.name, "weights": self.model.origin["weights"], **accuracy}
        metrics["notes"] = [*self.choice.notes, *self.model.notes, *metrics.get("notes", ())]
        interpreter.metrics_ = metrics = plain(metrics)
        interpreter.origin = self.model.origin
        self._save()  # before the pictures: whatever befalls them, the fit is kept
        words = report_words(
            options, self.choice, self.model, self.images, device=self.device, precision=self.precision
        )
        write_pictures(interpreter, self.directory, words, started)
        self._save()
        metrics = interpreter.metrics_
        self.directory.begin(options.of_the_run(), precision=self.precision, is_finished=True)
        show_result(self.directory, metrics, as_json=options.as_json)


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{v:g}" for v in values)
