"""What a fit is about to do, and how long it will take: a few steps of each stage, timed on copies of its parts."""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from posthoc_inn.autoencoders import TrainableAutoencoder, draws_of
from posthoc_inn.fit.concepts import build_factor_flow
from posthoc_inn.fit.faithful import FaithfulLoss, asking, faithful_training, samples_a_step
from posthoc_inn.fit.linear import linear_seconds
from posthoc_inn.fit.memory import beyond_steps
from posthoc_inn.fit.parts import Parts
from posthoc_inn.fit.pictures import ENOUGH, PictureLoss
from posthoc_inn.flows import ConditionalFlow, set_compute_dtype
from posthoc_inn.flows.pictures import PictureNet
from posthoc_inn.rows.reader import RowReader
from posthoc_inn.training.factors import FactorLoss
from posthoc_inn.training.precision import fabric_for
from posthoc_inn.training.tasks import AutoencoderLoss, FlowLoss
from posthoc_inn.training.threads import MIN_IMAGES, MIN_STEPS, fastest, thread_counts, time_threads, using_threads

TIMED = 64
"""Images whose reading is timed."""


@dataclass(frozen=True)
class Plan:
    """What a fit is about to do.

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


class Paces:
    """Seconds of a step of each stage, and the number of threads that it is fastest with.

    Args:
        parts: What the steps work with; they are copied, and stay as they are.
        reader: Reads images.
        images: Images that are going to be read; 0 where their number is not known.
        threads: Stage -> threads, where they are settled already; what is found is added.
    """

    def __init__(self, parts: Parts, reader: RowReader, images: int, threads: dict[str, int]) -> None:
        self.parts, self.reader, self.images, self.threads = parts, reader, images, threads

    def settle(self, stage: str, z: Tensor | None = None) -> None:
        """Settle on the number of threads of a stage that is long enough, unless that is done.

        Args:
            stage: "features", "autoencoder", "latents" (which are too short to be timed), "e", "pictures", "t" or
                "faithful".
            z: For the last three: some features, (B, *z_shape).
        """
        if stage in self.threads or stage == "latents":
            return
        if stage == "features":
            if self.images >= MIN_IMAGES:
                few = self.parts.data.first(16)
                self._measure(stage, lambda: self.reader.row(few), self.images)
        elif self.steps(stage) >= MIN_STEPS:
            self.seconds_of(stage, z)

    def seconds_of(self, stage: str, z: Tensor | None = None) -> float:
        """Return the estimated seconds of a stage of training; see `settle` for the arguments."""
        steps = self.steps(stage)
        if not steps:
            return 0.0
        if stage == "autoencoder":
            return self._seconds_of_autoencoder(steps)
        if stage == "e":
            step = concept_step(self.parts)
        elif stage == "pictures":
            step = picture_step(self.parts, cast(Tensor, z))
        elif stage == "faithful":
            step = faithful_step(self.parts, cast(Tensor, z))
        else:
            step = flow_step(self.parts, cast(Tensor, z))
        return steps * self._measure(stage, step, steps)

    def _seconds_of_autoencoder(self, steps: int) -> float:
        """Return the estimated seconds of so many steps, of which a discriminator takes part in the last only."""
        shape = self.parts.trained_by
        if shape is None or not shape.discriminator:
            return steps * self._measure("autoencoder", autoencoder_step(self.parts), steps)
        alone = math.ceil(shape.discriminator_start * steps)  # `AutoencoderLoss` looks at step / steps
        both = self._measure("autoencoder", autoencoder_step(self.parts), steps)
        with using_threads(self.threads["autoencoder"]):
            first = _time(autoencoder_step(self.parts, progress=0.0), self.parts.device) if alone else 0.0
        return alone * first + (steps - alone) * both

    def steps(self, stage: str) -> int:
        """Return the steps of a stage of training."""
        config = self.parts.config
        by_stage = {
            "autoencoder": config.autoencoder_training,
            "e": config.concepts.training,
            "pictures": config.picture_training,
            "t": config.flow_training,
            "faithful": faithful_training(config),
        }
        if stage in ("t", "faithful") and not self.parts.flow.is_trained:
            return 0
        return by_stage[stage].steps

    def _measure(self, stage: str, step: Callable[[], object], steps: int) -> float:
        """Return the seconds of a step, and settle on the number of threads of `stage`."""
        most = torch.get_num_threads()
        if stage in self.threads or self.parts.device.type != "cpu" or steps < MIN_STEPS:
            with using_threads(self.threads.setdefault(stage, most)):
                return _time(step, self.parts.device)
        seconds = time_threads(step, thread_counts(most))
        self.threads[stage] = fastest(seconds)
        return seconds[self.threads[stage]]


def make_plan(parts: Parts, paces: Paces, draws: int, refits: int = 0) -> Plan:
    """Time a few steps of each stage on this machine, and say what will be done."""
    reader = paces.reader
    batch = parts.data.look(TIMED)["images"]
    started = time.perf_counter()
    row = reader.row(batch)
    per_image = (time.perf_counter() - started) / len(batch)
    found = draws_of(parts.data.data)
    making = 0.0 if found is None else found[0].seconds_each()
    per_image += making
    paces.settle("features")
    known = parts.data.length
    rows = None if known is None else known * draws
    row_bytes = sum(v.nbytes for v in row.values()) // len(batch) + 8 * parts.config.latent_dim
    seconds = {"features": 0.0 if rows is None else per_image * rows}
    if not parts.autoencoder_is_fitted:
        seconds["autoencoder"] = paces.seconds_of("autoencoder")
    if parts.concepts is not None and parts.concepts.space == "z_bar":
        seconds["e"] = paces.seconds_of("e")
    if parts.flow.pictures is not None:
        seconds["pictures"] = paces.seconds_of("pictures", row["z"])
    of_t = paces.seconds_of("t", row["z"])
    seconds["t"] = of_t + linear_seconds(parts.flow, row["z"], rows or 0)
    if parts.config.faithful:
        seconds["faithful"] = paces.seconds_of("faithful", row["z"])
    if refits:
        seconds["refits"] = refits * (of_t + seconds.get("faithful", 0.0))
    held_out = parts.held_out.length
    cached = 0  # mapped from disk
    if reader.out is None:
        all_rows = None if rows is None or held_out is None else rows + held_out
        cached = reader.budget if all_rows is None else min(reader.budget, all_rows * row_bytes)
    kept = 4 * refits * sum(p.numel() for p in parts.flow.parameters())
    parameters = sum(p.numel() for m in (parts.autoencoder, parts.flow) for p in m.parameters())
    # Weights, gradients, two moments, the best weights and their copies for timing, besides what is there already.
    memory = resident() + cached + parameters * 4 * 6 + kept + beyond_steps(parts, row, rows, held_out)
    on_disk = ""
    if rows is not None:
        on_disk = f"; {rows * row_bytes / 2**30:.1f} GiB of cached rows"
        on_disk += " on disk while it runs" if reader.out is not None else ""
    lines = (
        f"layer        {parts.extractor.layer}: z has shape {'×'.join(map(str, row['z'].shape[1:]))}",
        *_compared(parts),
        "images       "
        + ("an unknown number of" if known is None else f"{known:,}")
        + ("" if found is None else f" draws of the generator, {making:.2g} s each")
        + (f" × {draws} draws" if draws > 1 else "")
        + on_disk,
        *_described(parts, row["z"]),
        *([f"refits       {refits} more training{'s' * (refits > 1)} of t, with other seeds"] if refits else []),
        f"machine      {parts.device}, {_threads(paces.threads)}, precision {parts.precision}",
        f"estimated    {sum(seconds.values()) / 60:.1f} minutes, {memory / 2**30:.1f} GiB of memory",
    )
    return Plan(lines, seconds, memory, dict(paces.threads))


def _compared(parts: Parts) -> list[str]:
    """Return a line on what is compared of the model's predictions."""
    found = parts.prediction
    return [] if found is None else [f"prediction   {found.kind}: {found.why}"]


def _described(parts: Parts, z: Tensor) -> list[str]:
    """Return a line each on autoencoder, e and t, for features z (B, *z_shape)."""
    config, adapter = parts.config, parts.adapter
    training = config.autoencoder_training
    how = " (given, already trained)" if parts.autoencoder_is_fitted else f", {training.steps:,} steps"
    height, width = adapter.picture_shape
    size = f"{adapter.image_size} px" + (f" (pictures of {height} x {width})" if height != width else "")
    told = parts.autoencoder.config.latent_told
    lines = [f"autoencoder  {parts.autoencoder.config.kind}, {size}, {adapter.channels} channels, latent {told}{how}"]
    if parts.concepts is not None:
        names = ", ".join(getattr(parts.concepts.source, "names", None) or ("those of the labels",))
        lines.append(
            f"e            {names}: {config.concepts.blocks} blocks of width {config.concepts.width}, "
            f"{config.concepts.training.steps:,} steps of {config.concepts.training.batch_size} pairs"
        )
    if parts.flow.pictures is not None:
        lines.append(
            f"pictures     z may show them: a network finds them, {config.picture_training.steps:,} steps of "
            f"{config.picture_training.batch_size}; t starts from them"
            + (f" where they explain {100 * ENOUGH:.0f} % of the code" if parts.tries_pictures else "")
        )
    t = f"t            preset {config.preset}: {config.flow.told}"
    if parts.flow.is_trained:
        t += (
            f", {sum(p.numel() for p in parts.flow.parameters()) / 1e6:.1f} M parameters, "
            f"{config.flow_training.steps:,} steps of {config.flow_training.batch_size}"
        )
    if config.faithful:
        more = faithful_training(config)
        samples = samples_a_step(parts, _started(parts, z)[0], z[:1])
        t += f", then {more.steps:,} steps that ask the model of {samples} samples each"
    if config.code_noise:
        t += f", codes with noise of {config.code_noise:g} of each channel's deviation"
    lines.append(t)
    return lines


def _threads(threads: dict[str, int]) -> str:
    most = torch.get_num_threads()
    fewer = [f"{count} for {name}" for name, count in threads.items() if count < most]
    return f"{most} thread{'s' * (most > 1)}" + (f" ({', '.join(fewer)}: faster so now)" if fewer else "")


# ---- a training step of each stage, on copies


def autoencoder_step(parts: Parts, progress: float = 1.0) -> Callable[[], None]:
    """Return a function that takes one training step of a copy of the autoencoder.

    Args:
        parts: What the step works with.
        progress: Share of the training that is done: a discriminator takes part in the later steps.
    """
    adapter = parts.adapter
    loss = AutoencoderLoss(cast(TrainableAutoencoder, copy.deepcopy(parts.autoencoder)), parts.metric()).train()
    size = parts.config.autoencoder_training.batch_size
    images = torch.zeros(size, adapter.channels, adapter.image_size, adapter.image_size, dtype=torch.uint8)
    images.random_(0, 256, generator=torch.Generator().manual_seed(0))
    noise = torch.zeros(size, parts.config.latent_dim)
    more = () if loss.discriminator is None else (torch.tensor(progress),)
    fabric = fabric_for(parts.device, parts.precision)
    module, optimizer = fabric.setup(loss, torch.optim.Adam(loss.parameters(), fused=True))

    def step() -> None:
        optimizer.zero_grad()
        fabric.backward(module(images.to(parts.device), noise.to(parts.device), *more))
        optimizer.step()

    return step


def concept_step(parts: Parts) -> Callable[[], None]:
    """Return a function that takes one training step of an e of the size that is to be fitted."""
    config, dim = parts.config.concepts, parts.config.latent_dim
    flow = build_factor_flow(config, (dim - 1, 1), parts.config.flow.seed).to(parts.device)
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, config.training.batch_size, dim, generator=generator).to(parts.device)
    flow.initialize(a)
    set_compute_dtype(flow, torch.bfloat16 if parts.precision == "bf16" else None)
    loss = FactorLoss(flow, config.rho, learned=config.learn_rho).train()
    optimizer = torch.optim.Adam(loss.parameters(), fused=True)
    shared = torch.tensor([False, True], device=parts.device)

    def step() -> None:
        optimizer.zero_grad()
        loss(a, b, shared).backward()
        optimizer.step()

    return step


def picture_step(parts: Parts, z: Tensor) -> Callable[[], None]:
    """Return a function that takes one step of training what finds pictures in features z (B, *z_shape)."""
    flow = copy.deepcopy(parts.flow)
    size, dim, shape = parts.config.picture_training.batch_size, parts.config.latent_dim, parts.flow.picture_shape
    z = z.float().repeat(-(-size // len(z)), *([1] * (z.ndim - 1)))[:size].to(parts.device)
    flow.conditioner.fit_standardization([z])
    cast(PictureNet, flow.pictures).learn(True)
    loss = PictureLoss(flow, torch.ones(dim, device=parts.device)).train()
    images = torch.zeros(size, *shape, dtype=torch.uint8, device=parts.device)
    mean = torch.zeros(size, dim, device=parts.device)
    fabric = fabric_for(parts.device, "32")
    trained = [p for p in loss.parameters() if p.requires_grad]
    module, optimizer = fabric.setup(loss, torch.optim.Adam(trained, fused=True))

    def step() -> None:
        optimizer.zero_grad()
        fabric.backward(module(z, images, mean))
        optimizer.step()

    return step


def _started(parts: Parts, z: Tensor) -> tuple[ConditionalFlow, Tensor, Tensor]:
    """Return a copy of t that could be trained, and the features z and latents (B, D) of a batch."""
    flow = copy.deepcopy(parts.flow)
    size = parts.config.flow_training.batch_size
    z = z.float().repeat(-(-size // len(z)), *([1] * (z.ndim - 1)))[:size].to(parts.device)
    flow.conditioner.fit_standardization([z])
    latents = torch.randn(size, parts.config.latent_dim, generator=torch.Generator().manual_seed(0)).to(parts.device)
    if flow.linear is not None:
        dim = latents.shape[1]
        flow.linear.set(torch.zeros(dim), torch.zeros_like(flow.linear.weight), torch.eye(dim))
    flow.initialize(latents, z)
    if flow.base is None and parts.learns_concepts:
        # e is not trained yet; it takes as long untrained.
        base = build_factor_flow(parts.config.concepts, (latents.shape[1] - 1, 1), 0).to(parts.device)
        base.initialize(latents)
        flow.set_base(base)
    parts.set_precision(flow)
    return flow, z, latents


def faithful_step(parts: Parts, z: Tensor) -> Callable[[], None]:
    """Return a function that takes one step of training a copy of t by its samples, for features z (B, *z_shape)."""
    flow, z, latents = _started(parts, z)
    count = samples_a_step(parts, flow, z[:1])
    loss = FaithfulLoss(flow, asking(parts), parts.config.faithful_weight, parts.interaction_weight(flow)).train()
    optimizer = torch.optim.Adam([p for p in loss.parameters() if p.requires_grad], fused=True)
    v = latents[:count].clone()
    pairs = torch.zeros(2, len(latents) // 4 if loss.likelihood.interaction_weight else 0, latents.shape[1]).to(v)
    none = latents[:0]

    def step() -> None:
        optimizer.zero_grad()
        loss(z, latents, torch.ones_like(latents), torch.zeros_like(latents), v, pairs, none).backward()
        optimizer.step()

    return step


def flow_step(parts: Parts, z: Tensor) -> Callable[[], None]:
    """Return a function that takes one training step of a copy of t, for features z (B, *z_shape)."""
    flow, z, latents = _started(parts, z)
    size = len(latents)
    loss = FlowLoss(flow, parts.interaction_weight(flow)).train()
    optimizer = torch.optim.Adam([p for p in loss.parameters() if p.requires_grad], fused=True)
    v = None
    if flow.base is not None:
        drawn = torch.randn(2, max(1, size // 4), latents.shape[1], generator=torch.Generator().manual_seed(1))
        v = drawn.to(parts.device)

    def step() -> None:
        optimizer.zero_grad()
        loss(z, latents, torch.ones_like(latents), torch.zeros_like(latents), v).backward()
        optimizer.step()

    return step


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
