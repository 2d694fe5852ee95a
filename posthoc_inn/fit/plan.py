"""What a fit is about to do, and how long it will take: a few steps of each stage, timed on copies of its parts."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from posthoc_inn.autoencoders import draws_of
from posthoc_inn.fit.linear import linear_seconds
from posthoc_inn.fit.memory import beyond_steps
from posthoc_inn.fit.parts import Parts
from posthoc_inn.fit.pictures import ENOUGH
from posthoc_inn.fit.steps import autoencoder_step, concept_step, faithful_step, flow_step, picture_step
from posthoc_inn.rows.reader import RowReader
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
        }
        if stage == "faithful":
            return self.parts.faithful.steps if self.parts.faithful is not None else 0
        if stage == "t" and not self.parts.flow.is_trained:
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
    if parts.faithful is not None:
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
        *_described(parts),
        *([f"refits       {refits} more training{'s' * (refits > 1)} of t, with other seeds"] if refits else []),
        f"machine      {parts.device}, {_threads(paces.threads)}, precision {parts.precision}",
        f"estimated    {sum(seconds.values()) / 60:.1f} minutes, {memory / 2**30:.1f} GiB of memory",
    )
    return Plan(lines, seconds, memory, dict(paces.threads))


def _compared(parts: Parts) -> list[str]:
    """Return a line on what is compared of the model's predictions."""
    found = parts.prediction
    return [] if found is None else [f"prediction   {found.kind}: {found.why}"]


def _described(parts: Parts) -> list[str]:
    """Return a line each on autoencoder, e and t."""
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
    if parts.faithful is not None:
        t += f", then {parts.faithful.steps:,} steps that ask the model of {parts.faithful.samples} samples each"
    if config.code_noise:
        t += f", codes with noise of {config.code_noise:g} of each channel's deviation"
    lines.append(t)
    return lines


def _threads(threads: dict[str, int]) -> str:
    most = torch.get_num_threads()
    fewer = [f"{count} for {name}" for name, count in threads.items() if count < most]
    return f"{most} thread{'s' * (most > 1)}" + (f" ({', '.join(fewer)}: faster so now)" if fewer else "")


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
