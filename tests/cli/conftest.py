"""A small preset, a folder of pictures, and one finished run that many tests look at."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from posthoc_inn.cli.fit import classifier as classifier_stage
from posthoc_inn.cli.fit import run as fit_run
from posthoc_inn.cli.main import main
from posthoc_inn.config import PRESETS, FitConfig, preset
from posthoc_inn.datasets import ColorDigits
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


def tiny_preset() -> FitConfig:
    usual = preset("default")
    steps = {"steps": 8, "batch_size": 16, "eval_every": 4, "checkpoint_every": 4}
    return usual.replace(
        latent_dim=4,
        autoencoder_width=4,
        context_dim=8,
        conditioner_width=8,
        flow=usual.flow.replace(dim=4, context_dim=8, blocks=2, width=8),
        autoencoder_training=usual.autoencoder_training.replace(**steps),
        flow_training=usual.flow_training.replace(**steps),
    )


def make_quick(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(PRESETS, "default", tiny_preset())
    patch.setattr(classifier_stage, "estimate", lambda *args: 1.0)
    patch.setattr(fit_run, "CLASSIFIER_TRAINING", fit_run.CLASSIFIER_TRAINING.replace(batch_size=16))
    patch.setattr(figures.to_png, "__defaults__", (30,))
    patch.setattr(figures.to_data_uri, "__defaults__", (30,))


@pytest.fixture(autouse=True)
def _small_and_quick(monkeypatch):
    make_quick(monkeypatch)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Forty pictures of 28 px: two classes of digits, a folder each."""
    folder = tmp_path_factory.mktemp("pictures")
    data = ColorDigits(seed=3)
    for name, digit in (("nought", 0), ("one", 1)):
        (folder / name).mkdir()
        for number, index in enumerate(torch.nonzero(data.digits == digit).flatten()[:20].tolist()):
            pixels = (data[index][0].permute(1, 2, 0) * 255).byte().numpy()
            Image.fromarray(pixels).save(folder / name / f"{number:02}.png")
    return folder


@pytest.fixture
def ask(capsys) -> Callable[..., Answer]:
    """Run the command line in this process."""

    def run(*args: object) -> Answer:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return Answer(int(exit_.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def quick() -> tuple[str, ...]:
    """Options of a fit that takes a second."""
    return QUICK


@pytest.fixture(scope="session")
def finished(pictures, tmp_path_factory) -> Path:
    """A run from beginning to end; not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        with pytest.raises(SystemExit) as exit_:
            main(["fit", *QUICK, "--data", str(pictures), "--out", str(out), "--quiet"])
    assert exit_.value.code == 0
    return out
