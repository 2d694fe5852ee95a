"""A small preset and options of a fit that takes a second, for this process and for those that a test starts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from small_parts import tiny_default

from posthoc_inn import config
from posthoc_inn.cli.fit import classifier as classifier_stage
from posthoc_inn.cli.fit import run as fit_run
from posthoc_inn.report import figures

QUICK = (
    *("--backbone", "small_cnn", "--weights", "train", "--layer", "pool"),
    *("--classifier-steps", "8", "--precision", "32"),
)


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def make_quick(patch: pytest.MonkeyPatch) -> None:
    """Make the default preset, the classifier and the drawings small."""
    patch.setitem(config.PRESETS, "default", tiny_default())
    patch.setattr(classifier_stage, "estimate", lambda *args: 1.0)
    patch.setattr(fit_run, "CLASSIFIER_TRAINING", fit_run.CLASSIFIER_TRAINING.replace(batch_size=16))
    patch.setattr(figures.to_png, "__defaults__", (30,))
    patch.setattr(figures.to_data_uri, "__defaults__", (30,))
