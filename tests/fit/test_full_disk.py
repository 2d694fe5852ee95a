"""A disk that is full, at whatever is written: one line, and the run goes on once there is room."""

from __future__ import annotations

import contextlib

import pytest
import torch
from small_parts import TINY, network

from posthoc_inn import Interpreter
from posthoc_inn.errors import BundleError, DataError

resource = pytest.importorskip("resource", reason="limits of file sizes are POSIX")


@contextlib.contextmanager
def room(size):
    """Let no file grow above `size` bytes: the system refuses as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def interpreter():
    return Interpreter(network(), "3", preset=TINY, mean=(0.0,) * 3, std=(1.0,) * 3)


def images():
    return torch.rand(40, 3, 28, 28, generator=torch.Generator().manual_seed(0))


def test_a_fit_goes_on_from_every_full_disk(tmp_path):
    out, told, size = tmp_path / "run", [], 300
    fitted = None
    while fitted is None:
        try:
            with room(size):
                fitted = interpreter().fit(images(), out=out, resume=(out / "checkpoints").is_dir())
        except DataError as error:
            told.append(str(error))
        size = size * 3 // 2
    assert all("cannot be written: File too large" in text and "\n" not in text for text in told)
    names = ("stages.json", "cache/train", "autoencoder.safetensors")
    for name in names:
        assert any(name in text for text in told), (name, told)
    whole = interpreter().fit(images())
    assert all(torch.equal(a, b) for a, b in zip(fitted.flow_.parameters(), whole.flow_.parameters(), strict=True))
    with room(300), pytest.raises(BundleError, match="bundle cannot be written: File too large"):
        fitted.save(out / "bundle")
    assert fitted.save(out / "bundle").is_dir()
