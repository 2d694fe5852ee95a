"""The decoder on z of an inversion by Dosovitskiy & Brox: its rows, and its training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posthoc_inn.analysis.results import Result
from posthoc_inn.config import TrainConfig
from posthoc_inn.errors import DataError
from posthoc_inn.images import BatchSource, some_of
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.progress import Reporter
from posthoc_inn.rows.cache import DEFAULT_BUDGET, Cache
from posthoc_inn.rows.identity import key_of
from posthoc_inn.rows.reader import RowReader
from posthoc_inn.training import train
from posthoc_inn.training.direct import DirectDecoder, DirectTask
from posthoc_inn.training.precision import fabric_for
from posthoc_inn.weights import fingerprint

RATE = 1e-3
"""Peak learning rate."""


@dataclass(frozen=True)
class Direct(Result):
    """How a decoder on z was trained.

    Attributes:
        error: Mean squared error of pictures in [-1, 1] on images that it was not trained on.
        step: Step whose weights were kept.
        steps: Steps that were to be taken.
        rows: Images it was trained on, those included that say when to stop.
        parameters: Those of embedding, linear layer and decoder together.
        seconds: Of its training.
        verdict: Of its curve.
    """

    error: float
    step: int
    steps: int
    rows: int
    parameters: int
    seconds: float
    verdict: str


def training_rows(pipeline: Pipeline, data: Any, *, limit: int, seed: int, reporter: Reporter) -> Cache:
    """Return rows with pictures and z of training images; those of a fit as they are.

    Args:
        pipeline: The fitted parts.
        data: Rows, or images as given to `fit`.
        limit: Images read at the most, chosen at random.
        seed: Of the choice.
        reporter: Told how many are read.

    Raises:
        DataError: The images cannot be used, or rows are of another layer.
    """
    if isinstance(data, Cache):
        found = data["z"].shape
        if found != pipeline.z_shape:
            raise DataError(f"The rows are of another layer: their z is {found}, that of t {pipeline.z_shape}.")
        return data
    chosen = some_of(data, limit, seed=seed)
    source = BatchSource(chosen, batch_size=128, limit=limit, seed=seed).check()
    reader = RowReader(pipeline.extractor, pipeline.adapter, pipeline.device, reporter, budget=DEFAULT_BUDGET)
    cache = Cache()
    reporter.stage("reading training images", source.length)
    for batch in source.batches(draw=0):
        row = reader.row(pipeline.adapter.read(batch["images"]))
        cache.append(images=row["images"], z=row["z"])
        reporter.advance(len(cache))
    return cache


def trained_decoder(
    pipeline: Pipeline,
    rows: Cache,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    out: str | Path | None,
    reporter: Reporter,
) -> tuple[DirectDecoder, Direct]:
    """Train a decoder on z.

    Args:
        pipeline: The fitted parts, whose decoder it starts with.
        rows: With pictures and z.
        steps: Of training, at the most.
        batch_size: Rows a step.
        seed: Of everything random.
        out: Directory for its checkpoint, which a second call goes on from.
        reporter: Told how far it is.

    Raises:
        ConfigError: The decoder cannot be trained.
        DataError: There are too few rows.
        TrainingError: Training diverged, or `out` holds a decoder of other rows or another layer.
    """
    config = pipeline.flow.conditioner.config.replace(seed=seed)
    decoder = DirectDecoder(pipeline.autoencoder, config).to(pipeline.device)
    reporter.stage("decoder on z", steps)
    key = "" if out is None else key_of(rows.digest("images", "z"), fingerprint(pipeline.autoencoder))
    history = train(
        DirectTask(decoder, rows, batch_size=min(batch_size, len(rows)), seed=seed),
        TrainConfig(
            steps=steps,
            batch_size=batch_size,
            lr=RATE,
            clip=1.0,
            eval_every=max(1, min(250, steps // 5)),
            checkpoint_every=250,
            seed=seed,
        ),
        fabric=fabric_for(pipeline.device, "32"),
        checkpoint=None if out is None else Path(out) / "decoder-on-z.safetensors",
        resume=out is not None,
        progress=lambda step, total, figures: reporter.advance(step, figures),
        key=key,
    )
    decoder.requires_grad_(False)
    weights = [*decoder.embedding.parameters(), *decoder.head.parameters()]
    return decoder, Direct(
        error=history.best_loss,
        step=history.best_step,
        steps=steps,
        rows=len(rows),
        parameters=sum(p.numel() for p in weights) + decoder.trained,
        seconds=history.seconds,
        verdict=history.verdict(tolerance=1e-3),
    )
