"""What the timing scripts share: pinned threads, ceilings, interleaved rounds, the product's own step, tables.

Nothing here knows about a particular library; `contenders.py` does.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from posthoc_inn.config import TrainConfig
from posthoc_inn.flows import ConditionalFlow, CouplingFlow, set_compute_dtype
from posthoc_inn.objectives import flow_nll
from posthoc_inn.training.loop import Loop, Task
from posthoc_inn.training.precision import choose_precision

Step = Callable[[], object]
"""Does one unit of work; only its duration matters."""

MATRIX_SHAPES = ((256, 1024, 1024), (1024, 1024, 1024), (2048, 2048, 2048), (256, 256, 256))
"""(rows, inputs, outputs) of the products whose best rate is the ceiling; the first is the paper's hidden layer."""


def common_arguments(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every timing script has; `doc` is the script's docstring."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=None, help="default: as many as there are cores")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs; the times mean nothing")
    return parser


# ---- threads


@contextlib.contextmanager
def pinned(threads: int | None) -> Iterator[int]:
    """Run with a fixed number of threads on as many cores (where the system can pin), and put things back after."""
    before = torch.get_num_threads()
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    count = threads or (len(allowed) if allowed else os.cpu_count() or 1)
    if allowed and count <= len(allowed):
        os.sched_setaffinity(0, sorted(allowed)[:count])
    torch.set_num_threads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(before)
        if allowed:
            os.sched_setaffinity(0, allowed)


def statement(threads: int) -> str:
    """Return one line that says what the figures below it were measured with."""
    return (
        f"{threads} threads, torch {torch.__version__}, CPU capability {torch.backends.cpu.get_cpu_capability()}, "
        f"{platform.machine()}, {platform.system()}; chosen precision of posthoc_inn: {chosen_precision()}"
    )


def chosen_precision() -> str:
    """Return the precision that `Interpreter.fit` would choose here: "32" or "bf16"."""
    return choose_precision("auto", torch.device("cpu"))


def set_precision(flow: nn.Module, precision: str) -> None:
    """Let `flow` compute in `precision`, as `Interpreter.fit` does for training."""
    set_compute_dtype(flow, torch.bfloat16 if precision == "bf16" else None)


# ---- ceilings


@dataclass(frozen=True)
class Ceilings:
    """What this machine does at best, measured.

    Attributes:
        products: Floating-point operations a second in matrix products, by precision ("32", "bf16").
        copy: Bytes read plus bytes written a second when copying memory.
        update: The same when changing memory in place, as optimizers do: no line is fetched only to be overwritten.
    """

    products: dict[str, float]
    copy: float
    update: float

    @property
    def memory(self) -> float:
        """The higher of the two memory rates."""
        return max(self.copy, self.update)

    def __str__(self) -> str:
        rates = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in self.products.items())
        memory = f"copying {self.copy / 1e9:.1f} GB/s, in place {self.update / 1e9:.1f} GB/s"
        return f"ceilings: matrix products {rates}; memory {memory}"


def best_of(step: Step, repeats: int) -> float:
    """Return the shortest of `repeats` runs after a warm-up, in seconds."""
    step()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return min(times)


def measure_ceilings(*, smoke: bool = False) -> Ceilings:
    """Measure the best matrix-product rate of each precision, in the three forms of a linear layer, and memory."""
    products: dict[str, float] = {}
    for name, dtype in (("32", torch.float32), ("bf16", torch.bfloat16)):
        rates = []
        for rows, inputs, outputs in MATRIX_SHAPES[-1:] if smoke else MATRIX_SHAPES:
            x, w, g = (torch.randn(s).to(dtype) for s in ((rows, inputs), (outputs, inputs), (rows, outputs)))
            forms: tuple[Step, ...] = (
                lambda x=x, w=w: F.linear(x, w),
                lambda g=g, w=w: g @ w,
                lambda g=g, x=x: g.t() @ x,
            )
            rates += [2 * rows * inputs * outputs / best_of(form, 2 if smoke else 8) for form in forms]
        products[name] = max(rates)
    source = torch.ones(10**6 if smoke else 5 * 10**7)  # 200 MB: larger than most caches; zeros may share one page
    target = torch.empty_like(source)
    copy, update = (best_of(step, 2 if smoke else 8) for step in (lambda: target.copy_(source), lambda: target.add_(1)))
    return Ceilings(products, 2 * source.nbytes / copy, 2 * source.nbytes / update)


# ---- timing


@dataclass
class Timing:
    """Seconds of every round of one contender."""

    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median, in seconds."""
        return statistics.median(self.seconds)

    def cells(self, unit: float = 1e3, digits: int = 1) -> list[str]:
        """Return median, least and most as text, in units of 1/`unit` seconds."""
        return [f"{unit * s:.{digits}f}" for s in (self.median, min(self.seconds), max(self.seconds))]


def interleave(
    steps: Mapping[str, Step],
    *,
    rounds: int,
    warmup: int = 1,
    around: Callable[[str], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> dict[str, Timing]:
    """Time every step once a round, each round beginning with another one, so that all meet the same disturbances.

    `around(name)` is entered before and left after the time is taken.
    """
    names = list(steps)
    timings = {name: Timing() for name in names}
    gc.collect()
    for k in range(-warmup, rounds):
        turn = k % len(names)
        for name in names[turn:] + names[:turn]:
            with around(name):
                started = time.perf_counter()
                steps[name]()
                seconds = time.perf_counter() - started
            if k >= 0:
                timings[name].seconds.append(seconds)
    return timings


@contextlib.contextmanager
def peak_growth(into: list[float]) -> Iterator[None]:
    """Append how much the process's memory grew at its peak inside the block, in MB; nothing where Linux is not."""
    reset = Path("/proc/self/clear_refs")
    try:
        gc.collect()
        reset.write_text("5")  # sets the peak back to what is resident now
        before = _status("VmRSS")
    except OSError:
        yield
        return
    yield
    into.append(_status("VmHWM") - before)


def _status(key: str) -> float:
    """Return an entry of this process's status, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    raise OSError(f"no {key}")


# ---- our side


class _Paused(Exception):
    """Raised from the progress callback to get control back after a step."""


class ProductTraining:
    """The product's own training loop, made to take one step a call.

    Nothing of a step is written anew here: batch, seeds, learning rate, loss, backward pass, clipping and optimizer are
    the loop's.
    """

    def __init__(self, task: Task, config: TrainConfig) -> None:
        self._loop = Loop(task, config, Fabric(accelerator="cpu", devices=1), None)

    def step(self) -> None:
        """Take one step; the loop's own work between two steps is part of it."""
        with contextlib.suppress(_Paused):
            self._loop.run(self._pause)

    @property
    def is_finished(self) -> bool:
        """Whether all steps of the configuration are done."""
        return self._loop.step >= self._loop.config.steps or bool(self._loop.history.stopped)

    @staticmethod
    def _pause(step: int, steps: int, figures: dict[str, float]) -> None:
        raise _Paused


def endless(config: TrainConfig, **changes: object) -> TrainConfig:
    """Return `config` for timing steps: no end in sight, no looks at held-out data, no checkpoints."""
    return config.replace(steps=10**6, eval_every=0, patience=0, checkpoint_every=10**9, **changes)


class _ContextLoss(nn.Module):
    """MSC eq. 5 with a context given, averaged over the batch: what `FlowLoss` is, without the conditioner."""

    def __init__(self, flow: CouplingFlow | ConditionalFlow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, z_bar: Tensor, context: Tensor) -> Tensor:
        """Return the mean negative log-likelihood, a scalar in nats, for z_bar (B, D) and context (B, C)."""
        v, log_det = self.flow(z_bar, context)
        return flow_nll(v, log_det).mean()


class ContextTask:
    """Trains a coupling flow on one given batch, for timing."""

    name = "t"

    def __init__(self, flow: CouplingFlow, z_bar: Tensor, context: Tensor) -> None:
        self.module = _ContextLoss(flow)
        self._batch = (z_bar, context)

    def batch(self, step: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return z_bar (B, D) and context (B, C)."""
        return self._batch

    def held_out(self) -> dict[str, float]:
        """Return the loss on the batch itself."""
        return {"loss": float(self.module(*self._batch))}


# ---- printing


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip(), flush=True)


def millions(module: nn.Module) -> str:
    """Return the number of trained parameters, in millions, as text."""
    return f"{sum(p.numel() for p in module.parameters() if p.requires_grad) / 1e6:.2f} M"
