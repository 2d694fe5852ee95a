"""The first stage of the embedded example: reading labelled images and training the model that will be explained."""

from __future__ import annotations

import copy
import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from posthoc_inn.cli.models import Model
from posthoc_inn.config import TrainConfig
from posthoc_inn.errors import DataError
from posthoc_inn.images import BatchSource
from posthoc_inn.progress import Reporter
from posthoc_inn.rows.cache import Cache
from posthoc_inn.training import History, train
from posthoc_inn.training.classifier import ClassifierTask, labelled_rows, wake_last_layer
from posthoc_inn.training.precision import fabric_for


@dataclass(frozen=True)
class Trained:
    """How training went.

    Attributes:
        history: The curve.
        accuracy: On held-out images, of the weights that were kept.
        seconds: Time it took.
    """

    history: History
    accuracy: float
    seconds: float


def train_classifier(
    model: Model,
    data: BatchSource,
    held_out: BatchSource,
    *,
    config: TrainConfig,
    device: torch.device,
    precision: Literal["32", "bf16"],
    checkpoint: Path | None,
    resume: bool,
    reporter: Reporter,
) -> Trained:
    """Train `model` in place on labelled images, from fresh weights, and leave it in eval mode.

    Raises:
        DataError: The data has no classes, or more than the model.
        TrainingError: See `posthoc_inn.training.train`.
        KeyboardInterrupt: After Ctrl-C, once a checkpoint has been written.
    """
    started = time.perf_counter()
    module = model.module
    wake_last_layer(module)
    with reporter:
        known = data.length, held_out.length
        reporter.stage("reading labelled images", None if None in known else sum(n or 0 for n in known))
        rows = labelled_rows(data.batches(), Cache(), reporter.advance)
        read = len(rows)
        kept = labelled_rows(held_out.batches(), Cache(), lambda done: reporter.advance(read + done))
        module.to(memory_format=torch.channels_last)
        try:
            task = ClassifierTask(
                module, model.spec, rows, kept, batch_size=config.batch_size, steps=config.steps, seed=config.seed
            )
            reporter.stage("your model", config.steps)
            history = train(
                task,
                config,
                fabric=fabric_for(device, precision),
                checkpoint=checkpoint,
                resume=resume,
                progress=lambda step, total, figures: reporter.advance(step, figures),
                key=rows.digest("images", "labels"),
            )
            accuracy = task.held_out()["accuracy"]
        finally:
            module.to(memory_format=torch.contiguous_format)
            module.eval()
            module.requires_grad_(True)
            for parameter in module.parameters():
                parameter.grad = None
    return Trained(history, accuracy, time.perf_counter() - started)


def check_outputs(model: Model, data: BatchSource, device: torch.device) -> None:
    """Make sure that the model has an output for each class of the first images.

    Raises:
        DataError: It has not, or the images have no classes.
    """
    rows = labelled_rows([data.take(64)], Cache())
    task = ClassifierTask(model.module, model.spec, rows, rows, batch_size=1, steps=1, seed=0)
    with torch.no_grad():
        logits = task.module.logits(rows["images"].rows(torch.arange(2)).to(device))
    most = int(rows["labels"].tensor().max())
    if logits.ndim != 2 or logits.shape[1] <= most:
        raise DataError(
            f"{model.name} returns {'x'.join(map(str, logits.shape[1:]))} numbers an image, and the labels go up to "
            f"{most}: it needs an output for each class (--num-classes)."
        )


def estimate(
    model: Model, data: BatchSource, config: TrainConfig, device: torch.device, precision: Literal["32", "bf16"]
) -> float:
    """Return about how many seconds training will take, from a few steps on a copy of the model."""
    rows = labelled_rows([data.take(config.batch_size)], Cache())
    clone = copy.deepcopy(model.module).to(memory_format=torch.channels_last)
    task = ClassifierTask(clone, model.spec, rows, rows, batch_size=config.batch_size, steps=4, seed=0)
    times: list[float] = []

    def tick(step: int, total: int, figures: dict[str, float]) -> None:
        times.append(time.perf_counter())

    few = config.replace(steps=4, eval_every=0, checkpoint_every=100)
    train(task, few, fabric=fabric_for(device, precision), progress=tick)
    return config.steps * min(b - a for a, b in itertools.pairwise(times[:-1]))
