"""A folder of pictures, and one finished run that many tests look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_helpers import QUICK, Answer, make_quick
from PIL import Image

from posthoc_inn.cli.main import main
from posthoc_inn.datasets import ColorDigits


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
