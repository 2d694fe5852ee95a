"""The stages of a fit: read the images once, train the autoencoder, encode once, train e and t. Each can be resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor

from posthoc_inn.autoencoders import TrainableAutoencoder, latent_shape_of
from posthoc_inn.errors import NotFittedError
from posthoc_inn.files import plain, replace_file, writing
from posthoc_inn.fit.binding import BoundConcepts, ConceptRequest, bind
from posthoc_inn.fit.concepts import INITIALIZATION_ROWS, ConceptFit, check_request, fit_concepts, rows_of
from posthoc_inn.fit.events import stage_finished
from posthoc_inn.fit.faithful import train_faithful
from posthoc_inn.fit.linear import closed_form_history, compare, fit_linear, fitted_linear
from posthoc_inn.fit.lock import locked
from posthoc_inn.fit.parts import FitResult, Parts, checkpoint_of
from posthoc_inn.fit.pictures import find_pictures, judged, standardize
from posthoc_inn.fit.plan import Paces, Plan, make_plan
from posthoc_inn.fit.prediction import settle_prediction
from posthoc_inn.fit.refits import reseeded
from posthoc_inn.fit.rehearsal import rehearse
from posthoc_inn.fit.request import FitRequest
from posthoc_inn.flows import ConditionalFlow, set_compute_dtype
from posthoc_inn.objectives import drawn
from posthoc_inn.progress import Reporter
from posthoc_inn.rows.cache import DEFAULT_BUDGET, Cache
from posthoc_inn.rows.code_noise import measured_noise
from posthoc_inn.rows.identity import (
    MODEL,
    PREDICTION,
    Identity,
    check_same,
    identity,
    identity_of_model,
    identity_of_rows,
    key_of,
)
from posthoc_inn.rows.part import part_held_out
from posthoc_inn.rows.reader import RowReader
from posthoc_inn.training import History, train
from posthoc_inn.training.precision import fabric_for
from posthoc_inn.training.tasks import AutoencoderTask, FlowTask
from posthoc_inn.training.threads import using_threads
from posthoc_inn.weights import fingerprint

STAGES = "stages.json"
"""Threads and seconds of each stage, beside the checkpoints."""


class Fit:
    """One fit, prepared: `plan` says what it will do, `run` does it. `posthoc_inn.fit.prepare` makes one.

    On a CPU each long stage runs with the number of threads that a few of its steps are fastest with, at most
    `torch.get_num_threads()`. The same seed gives the same bits only with the same numbers, which is why `FitResult`
    has them, and a resumed run goes on with those of its beginning.

    Args:
        parts: What it works with.
        request: What it is asked for.
        reporter: Shows how far it is.
        budget: Bytes of rows kept in memory where there is no directory.

    Attributes:
        seconds: Seconds of each stage so far, those of a run that is resumed included.
        threads: CPU threads of each stage.
        notes: What a user has to know of the layer's features.
        metric: What there is to know of the perceptual distance that the autoencoder was trained by; None for none.
        faithful: What training t further by what the model sees of its samples did; None where that was not done.
    """

    def __init__(
        self,
        parts: Parts,
        request: FitRequest,
        *,
        reporter: Reporter,
        budget: int = DEFAULT_BUDGET,
    ) -> None:
        self.parts = parts = settle_prediction(parts)
        self.request = request
        self.reporter = reporter
        self.seconds: dict[str, float] = {}
        self.threads: dict[str, int] = {}
        self.metric: dict[str, Any] | None = None
        self.faithful: dict[str, Any] | None = None
        self._expected: Tensor | None = None
        self._result: FitResult | None = None
        self._is_locked = False
        if parts.concepts is not None:
            check_request(parts.concepts, parts.config.concepts, parts.config.latent_dim)
        self._reader = RowReader(
            parts.extractor,
            parts.adapter,
            parts.device,
            reporter,
            out=request.directory,
            resume=request.resume,
            budget=budget,
            for_concepts=parts.concepts is not None,
        )
        self._identity = self._identify()
        if request.resume:
            if request.directory is not None and (request.directory / "checkpoints").is_dir():
                self._recall()
            else:
                reporter.note(f"Nothing in {request.directory} to go on from: starting.")
        # How fast rows are made of a generator's draws is the generator's matter, which has threads of its own.
        read = 0 if parts.data.few is not None else (parts.data.length or 0) * request.draws
        self._paces = Paces(parts, self._reader, read, self.threads)
        parts.autoencoder.to(parts.device)
        parts.flow.to(parts.device)
        self.notes = rehearse(parts)

    @functools.cached_property
    def _plan(self) -> Plan:
        return make_plan(self.parts, self._paces, self.request.draws, self.request.refits)

    def plan(self) -> Plan:
        """Return what will be done and about how long it takes; the first call times a few steps of each stage."""
        return self._plan

    def probe_again(self) -> None:
        """Look at the layer anew: the model was trained after this fit was prepared."""
        parts = self.parts
        images = parts.adapter.to_model(parts.data.first(4).to(parts.device))
        self.parts = settle_prediction(dataclasses.replace(parts, probe=parts.extractor.probe(images)))
        self._reader.extractor = self.parts.extractor
        self.notes = rehearse(self.parts)

    # ---- the stages

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's directory, so that no other fit writes there; it may be held already.

        Raises:
            DataError: Another fit holds it, or it cannot be written.
        """
        if self._is_locked:
            yield
            return
        with locked(self.request.directory):
            self._is_locked = True
            try:
                yield
            finally:
                self._is_locked = False

    def run(self) -> FitResult:
        """Run all stages.

        Raises:
            DataError: Images cannot be read, rows cannot be written, or a concept cannot be learned.
            TrainingError: Training diverged, or there is nothing fitting to resume.
            KeyboardInterrupt: After Ctrl-C, once a checkpoint has been written.
        """
        with self.locked():
            return self._run()

    def _run(self) -> FitResult:
        if self._identity:
            # The model may have been trained since this was prepared; the images are the same.
            self._identity |= identity_of_model(self.parts.extractor)
        if self.request.resume:
            self._check_recorded(self._recorded())
        parts, config = self.parts, self.parts.config
        for note in self.notes:
            self.reporter.note(f"Note: {note}")
        train_rows, held_rows, extra_rows = self._stage("features", self._read)
        selection, measured = part_held_out(held_rows, seed=config.flow.seed)
        bound, chooses_e = None, selection
        if parts.concepts is not None:
            bound, chooses_e = self._bind(parts.concepts, train_rows, (selection, held_rows), extra_rows)
        if bound is not None:
            check_request(bound, config.concepts, config.latent_dim)
        autoencoder_history = None
        if not parts.autoencoder_is_fitted:
            autoencoder_history = self._trained(
                "autoencoder", lambda: self._train_autoencoder(train_rows, selection, extra_rows)
            )
        parts.autoencoder.eval()
        if "autoencoder" in self.threads:
            self.threads.setdefault("latents", self.threads["autoencoder"])
        caches = [cache for cache in (train_rows, held_rows, extra_rows) if cache is not None]
        self._stage("latents", lambda: self._encode(*caches))
        found = None
        if bound is not None:
            found = self._trained("e", lambda: self._fit_concepts(bound, train_rows, chooses_e, extra_rows))
            if parts.learns_concepts and bound.source is not None:
                parts.flow.set_base(found.model.flow)
        some = train_rows["z"].rows(torch.arange(min(len(train_rows), config.flow_training.batch_size)))
        if parts.flow.pictures is not None:
            self._trained("pictures", lambda: self._find_pictures(train_rows, selection), z=some)
            self._keep_pictures(selection)
        history = self._trained("t", lambda: self._train_flow(self.parts, train_rows, selection), z=some)
        # Everything after training asks for exact inverses: full precision costs little there.
        set_compute_dtype(self.parts.flow, None)
        trained = self.parts.flow
        linear = self._stage("t", lambda: self._beside_linear(train_rows, selection))
        faithful_history = None
        if parts.faithful is not None and self.parts.flow is not trained:
            self.reporter.note("Note: t is not trained further by its samples, since the linear t takes its place.")
        elif parts.faithful is not None:
            faithful_history = self._trained(
                "faithful", lambda: self._train_faithful(self.parts, train_rows, selection), z=some
            )
        refits = self._refits(trained, linear, train_rows, selection)
        self._result = FitResult(
            parts.autoencoder,
            self.parts.flow,
            train_rows,
            selection,
            measured,
            autoencoder_history,
            history,
            found,
            trained,
            linear,
            refits,
            self.seconds,
            self.threads,
            bound,
            extra_rows,
            held_rows,
            faithful_history,
        )
        return self._result

    @property
    def result(self) -> FitResult:
        """What `run` returned, cached rows included.

        Raises:
            NotFittedError: It has not run.
        """
        if self._result is None:
            raise NotFittedError("This fit has not run: call run() first.")
        return self._result

    def clean(self) -> None:
        """Remove the cached rows from the run's directory; checkpoints stay."""
        self._reader.clean()

    def _stage(self, name: str, work: Callable[[], Any], z: Tensor | None = None) -> Any:
        """Do the work of one stage with its threads, and count its seconds; t is timed on the features `z`."""
        before, started = self.seconds.get(name, 0.0), time.perf_counter()
        self._paces.settle(name, z)
        threads = self.threads.setdefault(name, torch.get_num_threads())
        self._record()
        try:
            with using_threads(threads):
                return work()
        finally:
            self.seconds[name] = before + time.perf_counter() - started
            self._record()

    def _trained(self, name: str, work: Callable[[], Any], z: Tensor | None = None) -> Any:
        """Do the work of a stage of training, and pass its curve on."""
        found = self._stage(name, work, z)
        history: History = found.history if isinstance(found, ConceptFit) else found
        # A killed session left no time but its checkpoint's.
        self.seconds[name] = max(self.seconds[name], history.seconds)
        stage_finished(self.request, name, history.to_dict())
        return found

    def _record(self) -> None:
        """Leave beside the checkpoints what a resumed run goes on with: threads, and the time spent so far."""
        if self.request.directory is None:
            return
        target = self.request.directory / "checkpoints" / STAGES
        record = {"threads": self.threads, "seconds": self.seconds, "identity": self._identity}
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            replace_file(target, json.dumps(record))

    def _recorded(self) -> dict[str, Any]:
        """Return what the run that is gone on with recorded; nothing where it cannot be read."""
        try:
            text = (self.request.directory / "checkpoints" / STAGES).read_text(encoding="utf-8")  # type: ignore[operator]
            found = json.loads(text)
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _recall(self) -> None:
        """Take over what the run recorded, its threads as far as this machine and its user grant them.

        Raises:
            TrainingError: It was a run of other images, or of another layer.
        """
        recorded, most = self._recorded(), torch.get_num_threads()
        # The model may still be trained before this fit runs: `run` looks at it.
        self._check_recorded(recorded, but=(MODEL, PREDICTION))
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            # Unusable: threads are measured, and the time counts from now.
            self.threads = {str(k): max(1, min(int(v), most)) for k, v in recorded.get("threads", {}).items()}
            self.seconds = {str(k): float(v) for k, v in recorded.get("seconds", {}).items()}

    def _check_recorded(self, recorded: dict[str, Any], but: tuple[str, ...] = ()) -> None:
        known = recorded.get("identity")
        now = {name: digest for name, digest in self._identity.items() if name not in but}
        check_same(known if isinstance(known, dict) else {}, now, self.request.directory)

    def _identify(self) -> Identity:
        """Return what this is a fit of; nothing where nothing is kept that another fit could find."""
        parts, request = self.parts, self.request
        if request.directory is None:
            return {}
        extra = None if parts.concepts is None else parts.concepts.extra
        rows = identity_of_rows(parts.extractor, parts.adapter, parts.data, parts.held_out, request.draws, extra)
        config = getattr(parts.autoencoder, "config", None)
        given = fingerprint(cast(torch.nn.Module, parts.autoencoder)) if parts.autoencoder_is_fitted else plain(config)
        return rows | identity({"the autoencoder": given})

    # ---- what each stage does

    def _read(self) -> tuple[Cache, Cache, Cache | None]:
        parts = self.parts
        extra = None if parts.concepts is None else parts.concepts.extra
        key = key_of(self._identity)
        return self._reader.read(parts.data, parts.held_out, self.request.draws, extra, key=key)

    def _bind(
        self, wanted: ConceptRequest, rows: Cache, held_out: tuple[Cache, Cache], extra: Cache | None
    ) -> tuple[BoundConcepts, Cache]:
        """Return the concepts over cached rows, and the held-out rows that choose e.

        Those are the first of `held_out`, or the second, which are all, where a concept has too few pairs in a part.
        """
        selection, everything = held_out
        bound = bind(wanted, rows, selection, extra)
        if bound.held_out is None and selection is not everything:
            whole = bind(wanted, rows, everything, extra)
            if whole.held_out is not None:
                self.reporter.note(
                    "Note: held-out pairs are too few to be parted: e is chosen by all, those that are measured too."
                )
                return whole, everything
        return bound, selection

    def _encode(self, *caches: Cache) -> None:
        """Add codes to the caches, the first of which trains, with the noise that the configuration asks for."""
        parts, share = self.parts, self.parts.config.code_noise
        if share:
            shape = latent_shape_of(parts.autoencoder)
            noise = measured_noise(parts.autoencoder, caches[0], shape, share=share, device=parts.device)
            self.parts = dataclasses.replace(parts, code_noise=noise)
        self._reader.encode(parts.autoencoder, *caches, noise=self.parts.code_noise)

    def _key(self, *networks: torch.nn.Module) -> str:
        """Return what a checkpoint is kept under: what the fit is of, and the networks and codes it builds on."""
        noise = self.parts.code_noise  # none before there are codes
        more = [] if noise is None else [f"codes with noise of {noise.share}"]
        return key_of(self._identity, *map(fingerprint, networks), *more) if self._identity else ""

    def _advance(self, step: int, total: int, figures: dict[str, float]) -> None:
        self.reporter.advance(step, figures)

    def _fit_concepts(self, bound: BoundConcepts, rows: Cache, held_out: Cache, extra: Cache | None) -> ConceptFit:
        parts, config = self.parts, self.parts.config.concepts
        self.reporter.stage("e", config.training.steps)
        caches = [rows] if extra is None else [rows, extra]
        return fit_concepts(
            bound,
            rows_of(bound.space, *caches),
            rows_of(bound.space, held_out),
            config=config,
            seed=parts.config.flow.seed,
            device=parts.device,
            precision=parts.precision,
            checkpoint=checkpoint_of(self.request.directory, "e"),
            resume=self.request.resume,
            progress=self._advance,
            note=self.reporter.note,
            key=self._key(cast(torch.nn.Module, parts.autoencoder)),
        )

    def _train_autoencoder(self, rows: Cache, held_out: Cache, extra: Cache | None) -> History:
        parts, config = self.parts, self.parts.config.autoencoder_training
        self.reporter.stage("autoencoder", config.steps)
        autoencoder = cast(TrainableAutoencoder, parts.autoencoder)
        metric = parts.metric()
        self.metric = None if metric is None else metric.told() | {"weight": autoencoder.config.perceptual_weight}
        more: Any = {"extra": extra, "metric": metric, "steps": config.steps}
        task = AutoencoderTask(autoencoder, rows, held_out, batch_size=config.batch_size, seed=config.seed, **more)
        return train(
            task,
            config,
            fabric=fabric_for(parts.device, parts.precision),
            checkpoint=checkpoint_of(self.request.directory, "autoencoder"),
            resume=self.request.resume,
            progress=self._advance,
            key=self._key(*([] if metric is None else [metric.net])),
        )

    def _find_pictures(self, rows: Cache, held_out: Cache) -> History:
        """Train what finds the picture in z."""
        parts = self.parts
        self.reporter.stage("pictures", parts.config.picture_training.steps)
        return find_pictures(
            parts,
            rows,
            held_out,
            checkpoint=checkpoint_of(self.request.directory, "pictures"),
            resume=self.request.resume,
            progress=self._advance,
            key=self._key(cast(torch.nn.Module, parts.autoencoder)),
        )

    def _keep_pictures(self, held_out: Cache) -> None:
        self.parts, note = judged(self.parts, held_out)
        self.reporter.note(note)

    def _train_flow(self, parts: Parts, rows: Cache, held_out: Cache, name: str = "t") -> History:
        flow, config = parts.flow, parts.config.flow_training
        self.reporter.stage(name, config.steps if flow.is_trained else None)
        started = time.perf_counter()
        standardize(flow, rows)
        expected = None if flow.linear is None else fit_linear(flow, rows, held_out, seed=config.seed)
        self._expected = expected
        if not flow.is_trained:
            return closed_form_history(flow.eval(), rows, held_out, time.perf_counter() - started)
        pick = torch.randperm(len(rows), generator=torch.Generator().manual_seed(config.seed))[:INITIALIZATION_ROWS]
        mean, std = rows["mean"].rows(pick), rows["std"].rows(pick)
        flow.initialize(
            drawn(mean, std, config.seed).to(parts.device), rows["z"].rows(pick).float().to(parts.device), force=True
        )
        parts.set_precision(flow)
        task = FlowTask(
            flow,
            rows,
            held_out,
            batch_size=config.batch_size,
            seed=config.seed,
            interaction_weight=parts.interaction_weight(flow),
            expected=expected,
        )
        return train(
            task,
            config,
            # t runs its matrix products in bf16 by itself; autocast would also lower its exponents and sums.
            fabric=fabric_for(parts.device, "32"),
            checkpoint=checkpoint_of(self.request.directory, name.replace(" ", "-")),
            resume=self.request.resume,
            progress=self._advance,
            key=self._key(
                cast(torch.nn.Module, parts.autoencoder), *(p for p in (flow.base, flow.pictures) if p is not None)
            ),
        )

    def _train_faithful(self, parts: Parts, rows: Cache, held_out: Cache, name: str = "faithful") -> History:
        """Train t further by what the model sees of its samples."""
        self.reporter.stage(name, self._paces.steps("faithful"))
        autoencoder, flow = cast(torch.nn.Module, parts.autoencoder), parts.flow
        key = self._key(autoencoder, flow)  # before anything is changed
        parts.set_precision(flow)
        try:
            history, told = train_faithful(
                parts,
                rows,
                held_out,
                expected=self._expected,
                checkpoint=checkpoint_of(self.request.directory, name.replace(" ", "-")),
                resume=self.request.resume,
                progress=self._advance,
                key=key,
            )
        finally:
            set_compute_dtype(flow, None)
        self.faithful = self.faithful or told
        return history

    def _beside_linear(self, rows: Cache, held_out: Cache) -> ConditionalFlow:
        """Return the linear t for the same rows, and use it where the trained one is worse."""
        parts, flow = self.parts, self.parts.flow
        linear = fitted_linear(flow, rows, held_out, seed=parts.config.flow_training.seed)
        if linear is flow:
            return linear
        found = compare(flow, linear, held_out)
        is_used = found.is_worse and parts.config.linear_fallback
        if is_used:
            self.parts = dataclasses.replace(parts, flow=linear)
        note = found.note(is_used)
        if note is not None:
            if is_used:
                self.notes.append(note)
            self.reporter.note(f"Note: {note}")
        return linear

    def _refits(
        self, trained: ConditionalFlow, linear: ConditionalFlow, rows: Cache, held_out: Cache
    ) -> tuple[ConditionalFlow, ...]:
        """Train t anew with other seeds, as often as is asked for; each gives way to the linear t as the first does."""
        found = []
        for number in range(1, self.request.refits + 1):
            parts, name = reseeded(self.parts, trained, number), f"refit {number}"
            self.threads.setdefault(name, self.threads["t"])
            self._trained(name, functools.partial(self._train_flow, parts, rows, held_out, name))
            set_compute_dtype(parts.flow, None)
            gives_way = parts.config.linear_fallback and compare(parts.flow, linear, held_out).is_worse
            if parts.faithful is not None and not gives_way:
                more = f"faithful {name}"
                self.threads.setdefault(more, self.threads.get("faithful", self.threads["t"]))
                self._trained(more, functools.partial(self._train_faithful, parts, rows, held_out, more))
            found.append(linear if gives_way else parts.flow)
        return tuple(found)
