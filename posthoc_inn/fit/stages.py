"""The stages of a fit: read the images once, train the autoencoder, encode once, train t. Each can be resumed."""

from __future__ import annotations

import copy
import itertools
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from posthoc_inn.autoencoders import Autoencoder, TrainableAutoencoder
from posthoc_inn.autoencoders.base import CHUNK
from posthoc_inn.concepts import ConceptModel
from posthoc_inn.config import ConditionerConfig, FitConfig
from posthoc_inn.errors import DataError
from posthoc_inn.features import LayerExtractor
from posthoc_inn.files import replace_file
from posthoc_inn.fit.concepts import (
    BoundConcepts,
    ConceptFit,
    ConceptRequest,
    bind,
    build_factor_flow,
    check_request,
    fit_concepts,
    rows_of,
)
from posthoc_inn.flows import ConditionalFlow, set_compute_dtype
from posthoc_inn.images import BatchSource
from posthoc_inn.images.adapter import InputAdapter
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.progress import Reporter
from posthoc_inn.rows.cache import DEFAULT_BUDGET, Cache
from posthoc_inn.rows.reader import RowReader
from posthoc_inn.training import History, train
from posthoc_inn.training.factors import FactorLoss
from posthoc_inn.training.precision import fabric_for
from posthoc_inn.training.tasks import AutoencoderLoss, AutoencoderTask, FlowLoss, FlowTask
from posthoc_inn.training.threads import MIN_IMAGES, MIN_STEPS, fastest, thread_counts, time_threads, using_threads

INITIALIZATION_ROWS = 4096
"""Rows that set the actnorm layers."""

STAGES = "stages.json"
"""Threads and seconds of each stage, beside the checkpoints."""


@dataclass(frozen=True)
class Plan:
    """What a fit is about to do, told before it begins.

    Attributes:
        lines: In words, a line each.
        seconds: Estimated time of each stage, from a few steps measured on this machine.
        memory: Estimated bytes in memory, those held already included; the rows that the system keeps of files on disk
        are not.
        threads: CPU threads that each stage is fastest with at the moment.
    """

    lines: tuple[str, ...]
    seconds: dict[str, float]
    memory: int
    threads: dict[str, int] = field(default_factory=dict)


@dataclass
class FitResult:
    """What a fit leaves behind.

    Attributes:
        autoencoder: E and D.
        flow: t.
        train: Cached training rows.
        held_out: Cached held-out rows.
        autoencoder_history: None when the autoencoder was given.
        flow_history: Curve of t.
        concepts: e, its curve and the concepts' scores, where there are concepts.
        seconds: Time of each stage.
        threads: CPU threads of each stage.
    """

    autoencoder: Autoencoder
    flow: ConditionalFlow
    train: Cache
    held_out: Cache
    autoencoder_history: History | None
    flow_history: History
    concepts: ConceptFit | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    threads: dict[str, int] = field(default_factory=dict)


class Fit:
    """One fit; see `Interpreter.fit` for the arguments.

    On a CPU each long stage runs with the number of threads that a few of its steps are fastest with, at most
    `torch.get_num_threads()`. The same seed gives the same bits only with the same numbers, so that they are told in
    `FitResult.threads`, and a resumed run goes on with those of its beginning.
    """

    def __init__(
        self,
        *,
        extractor: LayerExtractor,
        adapter: InputAdapter,
        autoencoder: Autoencoder,
        autoencoder_is_fitted: bool,
        config: FitConfig,
        z_shape: tuple[int, ...],
        data: BatchSource,
        held_out: BatchSource,
        draws: int,
        device: torch.device,
        precision: Literal["32", "bf16"],
        out: Path | None,
        resume: bool,
        budget: int = DEFAULT_BUDGET,
        reporter: Reporter,
        on_stage: Callable[[str, dict[str, Any]], None] = lambda stage, info: None,
        concepts: ConceptRequest | None = None,
        fitted_concepts: ConceptModel | None = None,
    ) -> None:
        self.extractor, self.adapter, self.config = extractor, adapter, config
        self.autoencoder, self.autoencoder_is_fitted = autoencoder, autoencoder_is_fitted
        self.data, self.held_out, self.draws = data, held_out, draws
        self.device, self.precision = device, precision
        self.out, self.resume, self.budget = out, resume, budget
        self.reporter, self.on_stage, self.concepts = reporter, on_stage, concepts
        if concepts is not None:
            check_request(concepts, config.concepts, config.latent_dim)
        self.reader = RowReader(
            extractor, adapter, device, reporter,
            out=out, resume=resume, budget=budget, for_concepts=concepts is not None,
        )  # fmt: skip
        self.seconds: dict[str, float] = {}
        self.threads: dict[str, int] = {}
        if resume:
            self._recall()
        self.flow = ConditionalFlow(
            config.flow,
            ConditionerConfig(
                z_shape=z_shape,
                context_dim=config.context_dim,
                width=config.conditioner_width,
                depth=config.conditioner_depth,
                dropout=config.flow.dropout,
                seed=config.flow.seed,
            ),
        )
        if fitted_concepts is not None and config.flow_on_concepts:
            self.flow.set_base(fitted_concepts.flow)
        self.autoencoder.to(device)
        self.flow.to(device)

    # ---- what is about to happen

    def plan(self) -> Plan:
        """Time a few steps of each stage on this machine, and say what will be done."""
        config, adapter = self.config, self.adapter
        batch = next(iter(self.data.batches()))["images"]
        started = time.perf_counter()
        row = self.reader.row(batch)
        per_image = (time.perf_counter() - started) / len(batch)
        self._choose_feature_threads()
        known = self.data.length
        rows = None if known is None else known * self.draws
        row_bytes = sum(v.nbytes for v in row.values()) // len(batch) + 8 * config.latent_dim
        seconds = {"features": 0.0 if rows is None else per_image * rows}
        if not self.autoencoder_is_fitted:
            steps = config.autoencoder_training.steps
            seconds["autoencoder"] = steps * self._pace("autoencoder", self._autoencoder_step(), steps)
        if self.concepts is not None and self.concepts.space == "z_bar":
            steps = config.concepts.training.steps
            seconds["e"] = steps * self._pace("e", self._concept_step(), steps)
        steps = config.flow_training.steps
        seconds["t"] = steps * self._pace("t", self._flow_step(row["z"]), steps)
        parameters = sum(p.numel() for m in (self.autoencoder, self.flow) for p in m.parameters())
        cached = self.budget if rows is None else min(self.budget, rows * row_bytes)
        if self.out is not None:
            cached = 0  # mapped from disk
        # Weights, gradients, two moments, the best weights and their copies for timing, besides what is there already.
        memory = resident() + cached + parameters * 4 * 6
        count = "an unknown number of" if known is None else f"{known:,}"
        z = "×".join(map(str, row["z"].shape[1:]))
        own = (
            " (given, already trained)"
            if self.autoencoder_is_fitted
            else f", {config.autoencoder_training.steps:,} steps"
        )
        on_disk = (
            ""
            if rows is None
            else f"; {rows * row_bytes / 2**30:.1f} GiB of cached rows"
            + (" on disk while it runs" if self.out is not None else "")
        )
        told_concepts: tuple[str, ...] = ()
        if self.concepts is not None:
            concepts = ", ".join(getattr(self.concepts.source, "names", None) or ("those of the labels",))
            told_concepts = (
                f"e            {concepts}: {config.concepts.blocks} blocks of width {config.concepts.width}, "
                f"{config.concepts.training.steps:,} steps of {config.concepts.training.batch_size} pairs",
            )
        lines = (
            f"layer        {self.extractor.layer}: z has shape {z}",
            f"images       {count}" + (f" × {self.draws} draws" if self.draws > 1 else "") + on_disk,
            f"autoencoder  {self.autoencoder.config.kind}, {adapter.image_size} px, {adapter.channels} channels, "
            f"latent {config.latent_dim}{own}",
            *told_concepts,
            f"t            preset {config.preset}: {config.flow.blocks} blocks of width {config.flow.width}, "
            f"{sum(p.numel() for p in self.flow.parameters()) / 1e6:.1f} M parameters, "
            f"{config.flow_training.steps:,} steps of {config.flow_training.batch_size}",
            f"machine      {self.device}, {self._told_threads()}, precision {self.precision}",
            f"estimated    {sum(seconds.values()) / 60:.1f} minutes, {memory / 2**30:.1f} GiB of memory",
        )
        return Plan(lines, seconds, memory, dict(self.threads))

    def _told_threads(self) -> str:
        most = torch.get_num_threads()
        fewer = [f"{count} for {name}" for name, count in self.threads.items() if count < most]
        return f"{most} thread{'s' * (most > 1)}" + (f" ({', '.join(fewer)}: faster so now)" if fewer else "")

    def _pace(self, name: str, step: Callable[[], object], steps: int) -> float:
        """Return the seconds of a step, and settle on the number of threads of the stage `name`."""
        most = torch.get_num_threads()
        if name in self.threads or self.device.type != "cpu" or steps < MIN_STEPS:
            with using_threads(self.threads.setdefault(name, most)):
                return _time(step, self.device)
        seconds = time_threads(step, thread_counts(most))
        self.threads[name] = fastest(seconds)
        return seconds[self.threads[name]]

    def _choose_feature_threads(self) -> None:
        images = (self.data.length or 0) * self.draws
        if images >= MIN_IMAGES and "features" not in self.threads:
            few = self.data.first(16)
            self._pace("features", lambda: self.reader.row(few), images)

    def _autoencoder_step(self) -> Callable[[], None]:
        """Return a function that takes one training step of a copy of the autoencoder."""
        adapter = self.adapter
        loss = AutoencoderLoss(cast(TrainableAutoencoder, copy.deepcopy(self.autoencoder))).train()
        size = self.config.autoencoder_training.batch_size
        images = torch.zeros(size, adapter.channels, adapter.image_size, adapter.image_size, dtype=torch.uint8)
        images.random_(0, 256, generator=torch.Generator().manual_seed(0))
        noise = torch.zeros(size, self.config.latent_dim)
        fabric = fabric_for(self.device, self.precision)
        module, optimizer = fabric.setup(loss, torch.optim.Adam(loss.parameters(), fused=True))

        def step() -> None:
            optimizer.zero_grad()
            fabric.backward(module(images.to(self.device), noise.to(self.device)))
            optimizer.step()

        return step

    def _concept_step(self) -> Callable[[], None]:
        """Return a function that takes one training step of an e of the size that is to be fitted."""
        config, dim = self.config.concepts, self.config.latent_dim
        flow = build_factor_flow(config, (dim - 1, 1), self.config.flow.seed).to(self.device)
        generator = torch.Generator().manual_seed(0)
        a, b = torch.randn(2, config.training.batch_size, dim, generator=generator).to(self.device)
        flow.initialize(a)
        set_compute_dtype(flow, torch.bfloat16 if self.precision == "bf16" else None)
        loss = FactorLoss(flow, config.rho).train()
        optimizer = torch.optim.Adam(loss.parameters(), fused=True)
        shared = torch.tensor([False, True], device=self.device)

        def step() -> None:
            optimizer.zero_grad()
            loss(a, b, shared).backward()
            optimizer.step()

        return step

    def _flow_step(self, z: Tensor) -> Callable[[], None]:
        """Return a function that takes one training step of a copy of t, for features z (B, *z_shape)."""
        flow = copy.deepcopy(self.flow)
        size = self.config.flow_training.batch_size
        z = z.float().repeat(-(-size // len(z)), *([1] * (z.ndim - 1)))[:size].to(self.device)
        flow.conditioner.fit_standardization([z])
        latents = torch.randn(size, self.config.latent_dim, generator=torch.Generator().manual_seed(0)).to(self.device)
        flow.initialize(latents, z)
        if flow.base is None and self._is_on_concepts:
            # e is not trained yet; it takes as long untrained.
            base = build_factor_flow(self.config.concepts, (latents.shape[1] - 1, 1), 0).to(self.device)
            base.initialize(latents)
            flow.set_base(base)
        self._set_precision(flow)
        loss = FlowLoss(flow, self._interaction_weight(flow)).train()
        optimizer = torch.optim.Adam([p for p in loss.parameters() if p.requires_grad], fused=True)
        v = None
        if flow.base is not None:
            drawn = torch.randn(2, max(1, size // 4), latents.shape[1], generator=torch.Generator().manual_seed(1))
            v = drawn.to(self.device)

        def step() -> None:
            optimizer.zero_grad()
            loss(z, latents, torch.ones_like(latents), torch.zeros_like(latents), v).backward()
            optimizer.step()

        return step

    # ---- the stages

    def run(self) -> FitResult:
        """Run all stages."""
        train_rows, held_rows, extra_rows = self._stage("features", self._read, self._choose_feature_threads)
        bound = None if self.concepts is None else bind(self.concepts, train_rows, held_rows, extra_rows)
        if bound is not None:
            check_request(bound, self.config.concepts, self.config.latent_dim)
        autoencoder_history = None
        if not self.autoencoder_is_fitted:
            steps = self.config.autoencoder_training.steps
            autoencoder_history = self._stage(
                "autoencoder",
                lambda: self._train_autoencoder(train_rows, held_rows, extra_rows),
                lambda: steps >= MIN_STEPS and self._pace("autoencoder", self._autoencoder_step(), steps),
            )
            self._count(autoencoder_history, "autoencoder")
            self.on_stage("autoencoder", autoencoder_history.to_dict())
        self.autoencoder.eval()
        if "autoencoder" in self.threads:
            self.threads.setdefault("latents", self.threads["autoencoder"])
        self._stage("latents", lambda: self._encode(train_rows, held_rows, extra_rows))
        found = None
        if bound is not None:
            steps = self.config.concepts.training.steps
            found = self._stage(
                "e",
                lambda: self._fit_concepts(bound, train_rows, held_rows, extra_rows),
                lambda: steps >= MIN_STEPS and self._pace("e", self._concept_step(), steps),
            )
            self._count(found.history, "e")
            self.on_stage("e", found.history.to_dict())
            if self._is_on_concepts and bound.source is not None:
                self.flow.set_base(found.model.flow)
        some = train_rows["z"].rows(torch.arange(min(len(train_rows), self.config.flow_training.batch_size)))
        steps = self.config.flow_training.steps
        history = self._stage(
            "t",
            lambda: self._train_flow(train_rows, held_rows),
            lambda: steps >= MIN_STEPS and self._pace("t", self._flow_step(some), steps),
        )
        self._count(history, "t")
        # Everything after training asks for exact inverses: full precision costs little there.
        set_compute_dtype(self.flow, None)
        self.on_stage("t", history.to_dict())
        return FitResult(
            self.autoencoder,
            self.flow,
            train_rows,
            held_rows,
            autoencoder_history,
            history,
            found,
            self.seconds,
            self.threads,
        )

    def pipeline(self) -> Pipeline:
        """Return the parts joined."""
        return Pipeline(self.extractor, self.adapter, self.autoencoder, self.flow, self.device)

    def clean(self) -> None:
        """Remove the cached rows from the run's directory; checkpoints stay."""
        if self.out is not None:
            shutil.rmtree(self.out / "cache", ignore_errors=True)

    def _stage(self, name: str, work: Callable[[], Any], choose: Callable[[], object] = lambda: None) -> Any:
        """Do the work of one stage with its threads, which `choose` finds unless they are settled."""
        before, started = self.seconds.get(name, 0.0), time.perf_counter()
        if name not in self.threads:
            choose()
        threads = self.threads.setdefault(name, torch.get_num_threads())
        self._record()
        try:
            with using_threads(threads):
                return work()
        finally:
            self.seconds[name] = before + time.perf_counter() - started
            self._record()

    def _count(self, history: History, name: str) -> None:
        """Add what a killed session has trained: it could leave no time but the checkpoint's."""
        self.seconds[name] = max(self.seconds[name], history.seconds)

    def _record(self) -> None:
        """Leave beside the checkpoints what a resumed run goes on with: threads, and the time spent so far."""
        if self.out is None:
            return
        target = self.out / "checkpoints" / STAGES
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            replace_file(target, json.dumps({"threads": self.threads, "seconds": self.seconds}))
        except OSError as error:
            raise DataError(f"{target} cannot be written: {error}. Choose another out, or make room.") from error

    def _recall(self) -> None:
        """Take over what the run recorded, its threads as far as this machine and its user grant them."""
        most = torch.get_num_threads()
        try:
            recorded = json.loads((self.out / "checkpoints" / STAGES).read_text()) if self.out is not None else {}
            self.threads = {str(k): max(1, min(int(v), most)) for k, v in recorded.get("threads", {}).items()}
            self.seconds = {str(k): float(v) for k, v in recorded.get("seconds", {}).items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return  # nothing usable: threads are measured, and the time counts from now

    def _read(self) -> tuple[Cache, Cache, Cache | None]:
        extra = None if self.concepts is None else self.concepts.extra
        return self.reader.read(self.data, self.held_out, self.draws, extra)

    def _encode(self, *caches: Cache | None) -> None:
        self.reader.encode(self.autoencoder, *(cache for cache in caches if cache is not None))

    def _fit_concepts(self, bound: BoundConcepts, rows: Cache, held_out: Cache, extra: Cache | None) -> ConceptFit:
        config = self.config.concepts
        self.reporter.stage("e", config.training.steps)
        caches = [rows] if extra is None else [rows, extra]
        return fit_concepts(
            bound, rows_of(bound.space, *caches), rows_of(bound.space, held_out),
            config=config, seed=self.config.flow.seed, device=self.device, precision=self.precision,
            checkpoint=self._checkpoint("e"), resume=self.resume,
            progress=lambda step, total, figures: self.reporter.advance(step, figures), note=self.reporter.note,
        )  # fmt: skip

    def _set_precision(self, flow: ConditionalFlow) -> None:
        # e is not trained: its rounding would be noise that t can do nothing about.
        for part in (flow.flow, flow.conditioner):
            set_compute_dtype(part, torch.bfloat16 if self.precision == "bf16" else None)

    @property
    def _is_on_concepts(self) -> bool:
        """Whether t will work on an e that this fit trains."""
        return self.config.flow_on_concepts and self.concepts is not None and self.concepts.space == "z_bar"

    def _interaction_weight(self, flow: ConditionalFlow) -> float:
        return self.config.interaction_weight if flow.base is not None else 0.0

    def _checkpoint(self, name: str) -> Path | None:
        return None if self.out is None else self.out / "checkpoints" / f"{name}.safetensors"

    def _train_autoencoder(self, rows: Cache, held_out: Cache, extra: Cache | None) -> History:
        config = self.config.autoencoder_training
        self.reporter.stage("autoencoder", config.steps)
        autoencoder = cast(TrainableAutoencoder, self.autoencoder)
        task = AutoencoderTask(autoencoder, rows, held_out, batch_size=config.batch_size, seed=config.seed, extra=extra)
        return train(
            task,
            config,
            fabric=fabric_for(self.device, self.precision),
            checkpoint=self._checkpoint("autoencoder"),
            resume=self.resume,
            progress=lambda step, total, figures: self.reporter.advance(step, figures),
        )

    def _train_flow(self, rows: Cache, held_out: Cache) -> History:
        config = self.config.flow_training
        self.reporter.stage("t", config.steps)
        self.flow.conditioner.fit_standardization(
            (z.to(self.device) for (z,) in itertools.islice(rows.batches(CHUNK, "z"), 400)), force=True
        )
        pick = torch.randperm(len(rows), generator=torch.Generator().manual_seed(config.seed))[:INITIALIZATION_ROWS]
        mean, std = rows["mean"].rows(pick), rows["std"].rows(pick)
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(config.seed))
        self.flow.initialize(
            (mean + std * noise).to(self.device), rows["z"].rows(pick).float().to(self.device), force=True
        )
        self._set_precision(self.flow)
        task = FlowTask(
            self.flow, rows, held_out, batch_size=config.batch_size, seed=config.seed,
            interaction_weight=self._interaction_weight(self.flow),
        )  # fmt: skip
        return train(
            task,
            config,
            # t runs its matrix products in bf16 by itself; autocast would also lower its exponents and sums.
            fabric=fabric_for(self.device, "32"),
            checkpoint=self._checkpoint("t"),
            resume=self.resume,
            progress=lambda step, total, figures: self.reporter.advance(step, figures),
        )


def resident() -> int:
    """Return the most memory this process has held so far, in bytes; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _time(step: Callable[[], object], device: torch.device) -> float:
    """Return the shorter of two steps after a warm-up, in seconds."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])
