"""The stages of a fit: read the images once, train the autoencoder, encode once, train t. Each can be resumed."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor

from posthoc_inn.autoencoders import Autoencoder, TrainableAutoencoder
from posthoc_inn.cache import DEFAULT_BUDGET, Cache, pixels, unit
from posthoc_inn.config import ConditionerConfig, FitConfig
from posthoc_inn.errors import DataError
from posthoc_inn.features import LayerExtractor
from posthoc_inn.fingerprint import fingerprint
from posthoc_inn.flows import ConditionalFlow, set_compute_dtype
from posthoc_inn.images import BatchSource
from posthoc_inn.pipeline import CHUNK, InputAdapter, Pipeline, is_classification
from posthoc_inn.progress import Reporter
from posthoc_inn.training import History, train
from posthoc_inn.training.tasks import AutoencoderLoss, AutoencoderTask, FlowLoss, FlowTask

INITIALIZATION_ROWS = 4096
"""Rows that set the actnorm layers."""


@dataclass(frozen=True)
class Plan:
    """What a fit is about to do, told before it begins.

    Attributes:
        lines: In words, a line each.
        seconds: Estimated time of each stage, from a few steps measured on this machine.
        memory: Estimated bytes in memory, those held already included; the rows that the system keeps of files on disk
        are not.
    """

    lines: tuple[str, ...]
    seconds: dict[str, float]
    memory: int


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
        seconds: Time of each stage.
    """

    autoencoder: Autoencoder
    flow: ConditionalFlow
    train: Cache
    held_out: Cache
    autoencoder_history: History | None
    flow_history: History
    seconds: dict[str, float] = field(default_factory=dict)


class Fit:
    """One fit; see `Interpreter.fit` for the arguments."""

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
    ) -> None:
        self.extractor, self.adapter, self.config = extractor, adapter, config
        self.autoencoder, self.autoencoder_is_fitted = autoencoder, autoencoder_is_fitted
        self.data, self.held_out, self.draws = data, held_out, draws
        self.device, self.precision = device, precision
        self.out, self.resume, self.budget = out, resume, budget
        self.reporter, self.on_stage = reporter, on_stage
        self.seconds: dict[str, float] = {}
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
        self.autoencoder.to(device)
        self.flow.to(device)
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)

    # ---- what is about to happen

    def plan(self) -> Plan:
        """Time a few steps of each stage on this machine, and say what will be done."""
        config, adapter = self.config, self.adapter
        batch = next(iter(self.data.batches()))["images"]
        started = time.perf_counter()
        row = self._row(batch)
        per_image = (time.perf_counter() - started) / len(batch)
        known = self.data.length
        rows = None if known is None else known * self.draws
        row_bytes = sum(v.nbytes for v in row.values()) // len(batch) + 8 * config.latent_dim
        seconds = {"features": 0.0 if rows is None else per_image * rows}
        if not self.autoencoder_is_fitted:
            steps = config.autoencoder_training.steps
            seconds["autoencoder"] = steps * self._time_autoencoder(adapter)
        seconds["t"] = config.flow_training.steps * self._time_flow(row["z"])
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
        lines = (
            f"layer        {self.extractor.layer}: z has shape {z}",
            f"images       {count}" + (f" × {self.draws} draws" if self.draws > 1 else "") + on_disk,
            f"autoencoder  {self.autoencoder.config.kind}, {adapter.image_size} px, {adapter.channels} channels, "
            f"latent {config.latent_dim}{own}",
            f"t            preset {config.preset}: {config.flow.blocks} blocks of width {config.flow.width}, "
            f"{sum(p.numel() for p in self.flow.parameters()) / 1e6:.1f} M parameters, "
            f"{config.flow_training.steps:,} steps of {config.flow_training.batch_size}",
            f"machine      {self.device}, {torch.get_num_threads()} threads, precision {self.precision}",
            f"estimated    {sum(seconds.values()) / 60:.1f} minutes, {memory / 2**30:.1f} GiB of memory",
        )
        return Plan(lines, seconds, memory)

    def _time_autoencoder(self, adapter: InputAdapter) -> float:
        loss = AutoencoderLoss(cast(TrainableAutoencoder, copy.deepcopy(self.autoencoder))).train()
        size = self.config.autoencoder_training.batch_size
        images = torch.zeros(size, adapter.channels, adapter.image_size, adapter.image_size, dtype=torch.uint8)
        images.random_(0, 256, generator=torch.Generator().manual_seed(0))
        noise = torch.zeros(size, self.config.latent_dim)
        fabric = self._fabric("autoencoder")
        module, optimizer = fabric.setup(loss, torch.optim.Adam(loss.parameters(), fused=True))

        def step() -> None:
            optimizer.zero_grad()
            fabric.backward(module(images.to(self.device), noise.to(self.device)))
            optimizer.step()

        return _time(step, self.device)

    def _time_flow(self, z: Tensor) -> float:
        flow = copy.deepcopy(self.flow)
        size = self.config.flow_training.batch_size
        z = z.float().repeat(-(-size // len(z)), *([1] * (z.ndim - 1)))[:size].to(self.device)
        flow.conditioner.fit_standardization([z])
        latents = torch.randn(size, self.config.latent_dim, generator=torch.Generator().manual_seed(0)).to(self.device)
        flow.initialize(latents, z)
        self._set_precision(flow)
        loss = FlowLoss(flow).train()
        optimizer = torch.optim.Adam(loss.parameters(), fused=True)

        def step() -> None:
            optimizer.zero_grad()
            loss(z, latents, torch.ones_like(latents), torch.zeros_like(latents)).backward()
            optimizer.step()

        return _time(step, self.device)

    # ---- the stages

    def run(self) -> FitResult:
        """Run all stages."""
        train_rows, held_rows = self._stage("features", self._features)
        autoencoder_history = None
        if not self.autoencoder_is_fitted:
            autoencoder_history = self._stage("autoencoder", lambda: self._train_autoencoder(train_rows, held_rows))
            self.on_stage("autoencoder", autoencoder_history.to_dict())
        self.autoencoder.eval()
        self._stage("latents", lambda: self._encode(train_rows, held_rows))
        history = self._stage("t", lambda: self._train_flow(train_rows, held_rows))
        # Everything after training asks for exact inverses: full precision costs little there.
        set_compute_dtype(self.flow, None)
        self.on_stage("t", history.to_dict())
        return FitResult(self.autoencoder, self.flow, train_rows, held_rows, autoencoder_history, history, self.seconds)

    def pipeline(self) -> Pipeline:
        """Return the parts joined."""
        return Pipeline(self.extractor, self.adapter, self.autoencoder, self.flow, self.device)

    def clean(self) -> None:
        """Remove the cached rows from the run's directory; checkpoints stay."""
        if self.out is not None:
            shutil.rmtree(self.out / "cache", ignore_errors=True)

    def _stage(self, name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        done = work()
        self.seconds[name] = time.perf_counter() - started
        return done

    def _row(self, images: Tensor) -> dict[str, Tensor]:
        """Return what is cached of one batch: pictures, z, and the predicted class when there is one."""
        with torch.no_grad():
            images = images.to(self.device)
            z, output = self.extractor.features_and_prediction(self.adapter.to_model(images))
            row = {"images": pixels(self.adapter.to_images(images)).cpu(), "z": z.float().cpu()}
            if is_classification(output):
                row["prediction"] = output.argmax(1).cpu()
        return row

    def _features(self) -> tuple[Cache, Cache]:
        known = self.data.length, self.held_out.length
        total = None if None in known else (known[0] or 0) * self.draws + (known[1] or 0)
        self.reporter.stage("reading images and features", total)
        digest = hashlib.sha256(
            json.dumps(
                [
                    fingerprint(self.extractor.model),
                    self.extractor.to_dict(),
                    self.adapter.spec.to_dict(),
                    self.adapter.image_size,
                    self.draws,
                    *known,
                ]
            ).encode()
        ).hexdigest()
        done = 0
        caches = []
        for part, source, draws in (("train", self.data, self.draws), ("held_out", self.held_out, 1)):
            directory = self.out / "cache" / part if self.out is not None else None
            # Beside a run directory rows go to disk at once: a killed run finds them again, and the system's own
            # page cache keeps what fits in memory.
            cache = Cache(directory, 0 if directory is not None else self.budget)
            if not (self.resume and directory is not None and cache.restore(digest)):
                if directory is not None:
                    shutil.rmtree(directory, ignore_errors=True)
                try:
                    for batch in itertools.chain.from_iterable(source.batches(draw=k) for k in range(draws)):
                        cache.append(**self._row(batch["images"]))
                        done += len(batch["images"])
                        self.reporter.advance(done)
                    if directory is not None:
                        cache.save(digest)
                except OSError as error:
                    raise DataError(
                        f"The cache cannot be written to {directory or cache.directory}: {error}. Free some space, or "
                        "use fewer images or draws."
                    ) from error
            caches.append(cache)
        return caches[0], caches[1]

    def _encode(self, *caches: Cache) -> None:
        self.reporter.stage("encoding images", sum(len(c) for c in caches))
        done = 0
        for cache in caches:
            cache.drop("mean")
            cache.drop("std")
            for (images,) in cache.batches(CHUNK, "images"):
                with torch.no_grad():
                    mean, std = self.autoencoder.encode(unit(images.to(self.device)))
                cache.append(mean=mean.float(), std=std.float())
                done += len(images)
                self.reporter.advance(done)

    def _fabric(self, what: str) -> Fabric:
        # t runs its matrix products in bf16 by itself; autocast would also lower its exponents and sums.
        mixed = self.precision == "bf16" and what == "autoencoder"
        accelerator = {"cuda": "cuda", "mps": "mps"}.get(self.device.type, "cpu")
        devices: Any = [self.device.index or 0] if accelerator == "cuda" else 1
        return Fabric(accelerator=accelerator, devices=devices, precision="bf16-mixed" if mixed else "32-true")

    def _set_precision(self, flow: ConditionalFlow) -> None:
        set_compute_dtype(flow, torch.bfloat16 if self.precision == "bf16" else None)

    def _checkpoint(self, name: str) -> Path | None:
        return None if self.out is None else self.out / "checkpoints" / f"{name}.safetensors"

    def _train_autoencoder(self, rows: Cache, held_out: Cache) -> History:
        config = self.config.autoencoder_training
        self.reporter.stage("autoencoder", config.steps)
        autoencoder = cast(TrainableAutoencoder, self.autoencoder)
        task = AutoencoderTask(autoencoder, rows, held_out, batch_size=config.batch_size, seed=config.seed)
        return train(
            task,
            config,
            fabric=self._fabric("autoencoder"),
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
        task = FlowTask(self.flow, rows, held_out, batch_size=config.batch_size, seed=config.seed)
        return train(
            task,
            config,
            fabric=self._fabric("t"),
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


def _time(step: Callable[[], None], device: torch.device) -> float:
    """Return the shorter of two steps after a warm-up, in seconds."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])
