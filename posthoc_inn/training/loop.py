"""The one training loop, on Lightning Fabric: schedule, clipping, early stop, exact resume.

Every step draws its batch and its noise from generators seeded with (seed, step) alone, so a resumed run repeats
the interrupted one to the bit, and no generator state has to be saved.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from posthoc_inn.ambient import plain_torch
from posthoc_inn.config import TrainConfig
from posthoc_inn.errors import TrainingError
from posthoc_inn.generators import lent_generators
from posthoc_inn.seeds import derived
from posthoc_inn.training.checkpoint import (
    load_optimizer,
    optimizer_tensors,
    read_checkpoint,
    write_checkpoint,
)
from posthoc_inn.training.fabric import Fabric
from posthoc_inn.training.history import History
from posthoc_inn.training.schedule import learning_rate

Progress = Callable[[int, int, dict[str, float]], None]
"""Called after each step with (steps done, steps in all, what is worth showing)."""


class Task(Protocol):
    """What the loop trains: a module whose `forward` is the loss, fed by this object.

    One whose held-out loss does not tell which weights are better has `keeps_last`, True: its last ones are kept.
    """

    name: str

    @property
    def module(self) -> nn.Module:
        """What is trained."""

    def batch(self, step: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return the arguments of `module` for `step`; every random choice comes from `generator`."""

    def held_out(self) -> dict[str, float]:
        """Return figures on held-out data; "loss" is the one that early stopping looks at."""


def make_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return Adam or AdamW; what has fewer than two dimensions (biases, norms, actnorm) is not decayed."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    cls = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return cls(groups, lr=config.lr, betas=config.betas, fused=fused)


def gradient_norm(parameters: Iterable[Tensor]) -> float:
    """Return the joint norm of the gradients of `parameters`."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return float(nn.utils.get_total_norm(gradients))


def clipped_step(optimizer: torch.optim.Optimizer, norm: float, bound: float) -> None:
    """Take a step with gradients scaled down to a joint norm of `bound`, when theirs, `norm`, is larger.

    torch's own clipping multiplies every gradient whatever the norm, to spare a GPU's host a wait. Here the norm is
    read anyway, and the fused optimizer divides while it reads the gradients, as it does under a gradient scaler.
    """
    if norm <= bound:
        optimizer.step()
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not all(group.get("fused") for group in optimizer.param_groups):
        nn.utils.clip_grads_with_norm_(parameters, bound, torch.tensor(norm))
        optimizer.step()
        return
    optimizer.grad_scale = torch.tensor((norm + 1e-6) / bound, device=parameters[0].device)  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.grad_scale  # type: ignore[attr-defined]


@contextlib.contextmanager
def interrupt_flag() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into a flag, so that the step in hand ends and a checkpoint is written."""
    flag = threading.Event()
    previous = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    # A job in the background ignores Ctrl-C, and a handler of foreign code (None) could not be put back.
    if not is_main or previous is None or previous == signal.SIG_IGN:
        yield flag
        return

    def on_interrupt(number: int, frame: Any) -> None:
        if flag.is_set():
            if callable(previous):
                previous(number, frame)
            raise KeyboardInterrupt
        flag.set()

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, previous)


class Loop:
    """Trains one task; see `train`."""

    def __init__(self, task: Task, config: TrainConfig, fabric: Fabric, checkpoint: Path | None, key: str = "") -> None:
        self.key = key
        self.task, self.config, self.fabric, self.checkpoint = task, config, fabric, checkpoint
        self.history = History()
        self.step = 0
        optimizer = make_optimizer(task.module, config)
        self.raw_optimizer = optimizer
        self.module, self.optimizer = fabric.setup(task.module, optimizer)
        self.parameters = [p for p in task.module.parameters() if p.requires_grad]
        self.best: dict[str, Tensor] = {}
        self.average = averaged(task.module, config.ema) if config.ema else None
        self.recent: list[float] = []
        self.last_loss = math.nan
        self.nonfinite_in_a_row = 0

    def run(self, progress: Progress | None) -> History:
        """Train until the steps are done, patience runs out, or Ctrl-C."""
        started = time.perf_counter() - self.history.seconds
        self.module.train()
        with plain_torch(), interrupt_flag() as interrupted:
            while self.step < self.config.steps and not self.history.stopped:
                # Dropout and the encoder's noise draw from the global generators.
                with lent_generators(derived(self.config.seed, "step", self.step), self.fabric.device):
                    norm = self._one_step()
                self.step += 1
                self.history.seconds = time.perf_counter() - started
                is_last = self.step == self.config.steps
                if is_last or (self.config.eval_every and self.step % self.config.eval_every == 0):
                    self._look(norm)
                    if self.config.patience and self.history.looks_since_best >= self.config.patience:
                        self.history.stopped = "early"
                if is_last and not self.history.stopped:
                    self.history.stopped = "finished"
                if self.history.stopped or self.step % self.config.checkpoint_every == 0:
                    self.save()
                if progress is not None:
                    shown = {"loss": self.last_loss}
                    if self.history.rows:
                        shown["held_out"] = self.history.rows[-1]["held_out"]
                    progress(self.step, self.config.steps, shown)
                if interrupted.is_set():
                    self.save()
                    raise KeyboardInterrupt
        self._keep_best()
        return self.history

    def _one_step(self) -> float:
        """Take one optimizer step, or skip it when something is not finite; return the gradient's norm."""
        config = self.config
        lr = learning_rate(config, self.step)
        for group in self.raw_optimizer.param_groups:
            group["lr"] = lr
        generator = torch.Generator().manual_seed(derived(config.seed, "batch", self.step))
        batch = self.task.batch(self.step, generator)
        loss = self.module(*(b.to(self.fabric.device, non_blocking=True) for b in batch))
        self.optimizer.zero_grad(set_to_none=True)
        norm = math.nan
        if torch.isfinite(loss):
            self.fabric.backward(loss)
            norm = gradient_norm(self.parameters)
        if not math.isfinite(norm):
            self.history.skipped += 1
            self.nonfinite_in_a_row += 1
            if self.nonfinite_in_a_row > config.max_nonfinite:
                raise TrainingError(self._divergence_report(float(loss.detach()), lr))
            return norm
        self.nonfinite_in_a_row = 0
        clipped_step(self.raw_optimizer, norm, config.clip or math.inf)
        if self.average is not None:
            self.average.update_parameters(self.task.module)
        self.last_loss = float(loss.detach())
        self.recent.append(self.last_loss)
        return norm

    def _look(self, norm: float) -> None:
        """Measure on held-out data, with the averaged weights when they are kept."""
        average = None if self.average is None else self.average.module.state_dict()
        kept = average or self.task.module.state_dict()
        with _swapped(self.task.module, average):
            self.task.module.eval()
            with torch.no_grad(), lent_generators(derived(self.config.seed, "look"), self.fabric.device):
                figures = dict(self.task.held_out())
        self.module.train()
        train = sum(self.recent) / len(self.recent) if self.recent else math.nan
        loss = figures.pop("loss")
        is_best = self.history.add(
            step=self.step,
            train=train,
            held_out=loss,
            lr=learning_rate(self.config, self.step - 1),
            gradient_norm=norm,
            **figures,
        )
        self.recent = []
        if getattr(self.task, "keeps_last", False):
            is_best, self.history.best_step, self.history.best_loss = True, self.step, loss
        if is_best:
            self.best = {k: v.detach().clone() for k, v in kept.items()}

    def _keep_best(self) -> None:
        if self.best:
            self.task.module.load_state_dict(self.best)
        self.task.module.eval()

    def _divergence_report(self, loss: float, lr: float) -> str:
        last = self.history.rows[-1] if self.history.rows else None
        seen = f"last held-out loss {last['held_out']:.4g} at step {last['step']:.0f}" if last else "no look yet"
        kept = f" The checkpoint {self.checkpoint} is from before." if self.checkpoint else ""
        return (
            f"Training of the {self.task.name} diverged at step {self.step}: {self.nonfinite_in_a_row} steps in a row "
            f"had a loss or gradient that is not finite (loss {loss}, learning rate {lr:.2g}, {seen}). Lower the "
            f"learning rate, look at the data for outliers, or use precision 32.{kept}"
        )

    def save(self) -> None:
        """Write a checkpoint, when the run has a place for one."""
        if self.checkpoint is None or not self.fabric.is_global_zero:
            return
        tensors = {f"module.{k}": v for k, v in self.task.module.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        if self.average is not None:
            tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        tensors |= optimizer_tensors(self.raw_optimizer)
        write_checkpoint(
            self.checkpoint,
            tensors,
            {
                "task": self.task.name,
                "key": self.key,
                "step": self.step,
                "config": self.config.to_dict(),
                "history": self.history.to_dict(),
                "recent": self.recent,
                "nonfinite_in_a_row": self.nonfinite_in_a_row,
            },
        )

    def restore(self) -> None:
        """Go on from the checkpoint.

        Raises:
            TrainingError: It belongs to another task, configuration or network.
        """
        path = self.checkpoint
        if path is None:
            raise TrainingError("Nothing to resume: this run has no place for checkpoints.")
        tensors, state = read_checkpoint(path)
        if state["task"] != self.task.name or state["config"] != self.config.to_dict():
            changed = sorted(k for k in self.config.to_dict() if state["config"].get(k) != self.config.to_dict()[k])
            raise TrainingError(
                f"{path} belongs to another run (task {state['task']!r}; settings that differ: "
                f"{', '.join(changed) or 'none'}). Resume with the same options, or start anew without resuming."
            )

        if state["key"] != self.key:
            raise TrainingError(
                f"{path} was written while the {self.task.name} was trained on other data: other images, another model "
                "or layer, another autoencoder or e, or other noise of codes than now. Give what the run was begun "
                "with, choose another directory, or start anew without resuming."
            )

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        try:
            self.task.module.load_state_dict(part("module."))
            if self.average is not None:
                self.average.load_state_dict(part("average."))
        except RuntimeError as error:
            raise TrainingError(f"{path} belongs to another network: {error}") from None
        self.best = part("best.")
        load_optimizer(self.raw_optimizer, tensors)
        self.step = state["step"]
        self.history = History.from_dict(state["history"])
        self.recent = state["recent"]
        self.nonfinite_in_a_row = state["nonfinite_in_a_row"]


def averaged(module: nn.Module, decay: float) -> AveragedModel:
    """Return a moving average of the weights and buffers of `module`, which the first steps move faster.

    Args:
        module: What is trained; its weights as they are count as the first.
        decay: Share of the average that is left after an update, once there have been many.
    """

    def update(average: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        share = min(decay, int(count) / (int(count) + 9))
        for old, new in zip(average, current, strict=True):
            if old.is_floating_point():
                old.lerp_(new, 1 - share)
            else:
                old.copy_(new)

    average = AveragedModel(module, multi_avg_fn=update, use_buffers=True)
    average.n_averaged.fill_(1)
    return average


@contextlib.contextmanager
def _swapped(module: nn.Module, state: dict[str, Tensor] | None) -> Iterator[None]:
    """Run with other weights where there are any, and put the module's own back."""
    if state is None:
        yield
        return
    own = {k: v.detach().clone() for k, v in module.state_dict().items()}
    module.load_state_dict(state)
    try:
        yield
    finally:
        module.load_state_dict(own)


def train(
    task: Task,
    config: TrainConfig,
    *,
    fabric: Fabric | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    key: str = "",
) -> History:
    """Train `task.module` in place and leave the best held-out weights in it, in eval mode.

    Args:
        task: What to train, with its data.
        config: Steps, batch size, optimizer, schedule, patience.
        fabric: Where to run; the CPU in full precision when not given.
        checkpoint: File to write checkpoints to; none are written when it is not given.
        resume: Go on from `checkpoint` when that file exists; a finished run is only loaded.
        progress: Called after each step.
        key: Of the data that is trained on; a checkpoint of another is refused.

    Returns:
        The run's history.

    Raises:
        TrainingError: More than `config.max_nonfinite` steps in a row were not finite, or the checkpoint does
            not belong to this run.
        KeyboardInterrupt: After Ctrl-C, once a checkpoint has been written.
    """
    fabric = fabric or Fabric(accelerator="cpu", devices=1)
    loop = Loop(task, config, fabric, Path(checkpoint) if checkpoint is not None else None, key)
    if resume and loop.checkpoint is not None and loop.checkpoint.exists():
        loop.restore()
    return loop.run(progress)
