"""What a run is a run of: a resumed one goes on only with the same images, model, layer and settings."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posthoc_inn.errors import TrainingError
from posthoc_inn.features import LayerExtractor
from posthoc_inn.images import BatchSource, InputAdapter
from posthoc_inn.images.identity import data_digest
from posthoc_inn.weights import fingerprint

MODEL = "the model"
PREDICTION = "the kind of prediction"

Identity = dict[str, str]
"""One digest of each thing that a run is of, under the words that a message uses."""


def identity_of_rows(
    extractor: LayerExtractor,
    adapter: InputAdapter,
    data: BatchSource,
    held_out: BatchSource,
    draws: int,
    extra: Any = None,
) -> Identity:
    """Return what cached rows are of. `extra` are a concept source's own images, or None."""
    return identity(
        {
            "the set of images": data_digest(data),
            "the set of held-out images": data_digest(held_out),
            "the set of the concepts' own images": None if extra is None else data_digest(BatchSource(extra)),
            "the layer": {name: value for name, value in extractor.to_dict().items() if "prediction" not in name},
            "the way from images to the model's inputs": dataclasses.asdict(adapter),
            "the number of draws": draws,
        }
    ) | identity_of_model(extractor)


def identity_of_model(extractor: LayerExtractor) -> Identity:
    """Return what of an identity changes while a model is trained."""
    return identity(
        {
            PREDICTION: [extractor.prediction, extractor.kind, extractor.threshold],
            MODEL: fingerprint(extractor.model),
        }
    )


def identity(facts: Mapping[str, Any]) -> Identity:
    """Return a digest of each fact.

    >>> identity({"a": 1}) == identity({"a": 2})
    False
    """
    return {
        name: hashlib.sha256(json.dumps(fact, default=str, sort_keys=True).encode()).hexdigest()[:32]
        for name, fact in facts.items()
    }


def key_of(*parts: Identity | str) -> str:
    """Return one digest of all of it: the key under which rows and checkpoints are found again."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def check_same(recorded: Mapping[str, Any], now: Identity, directory: Path | None) -> None:
    """Make sure that a run which is gone on with is the one that was begun.

    Args:
        recorded: What the run was of, as far as it is known.
        now: What it is of now.
        directory: Where it is, for the message.

    Raises:
        TrainingError: It is another; the message says in what.
    """
    changed = [name for name, digest in now.items() if recorded.get(name, digest) != digest]
    if changed:
        raise TrainingError(
            f"The run in {directory} cannot be resumed: {_listed(changed)} {'is' if len(changed) == 1 else 'are'} not "
            "what it was begun with. Give the same, choose another directory, or start anew without resuming."
        )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
