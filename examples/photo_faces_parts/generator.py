"""A photo-realistic face generator as a decoder: MobileStyleGAN (Belousov 2021), as two OpenVINO files.

The files come with the package `random-face` on PyPI. Only OpenVINO reads them; the package's own code is not used.
No torch, no gradients: whoever draws from a generator needs neither.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LATENT_DIM = 512
TRUNCATION = 0.7
"""Latents w are drawn so far towards their mean: beyond it lie the generator's failures."""
SIZE = 256
"""Side of the pictures that are kept, in pixels; the generator makes 1024."""
FILES = tuple(f"{name}Network.{kind}" for name in ("Mapping", "Synthesis") for kind in ("xml", "bin"))


class FaceGenerator:
    """Draws latents (N, 512) and decodes them to pictures (N, 3, 256, 256), in one thread.

    A latent is w, truncated and whitened: pictures are dear, w are free. Mean and covariance are known from 20,000
    of them, and t has not to learn these from few pairs. Draw k of a seed is always the same.

    Args:
        directory: With MappingNetwork.xml, SynthesisNetwork.xml and their .bin.
        threads: For OpenVINO.
    """

    def __init__(self, directory: str | Path, threads: int = 1) -> None:
        import openvino

        missing = [name for name in FILES if not (Path(directory) / name).is_file()]
        if missing:
            raise SystemExit(f"{directory} has no {', '.join(missing)}: run `photo_faces.py setup --parts DIR` first.")
        core = openvino.Core()
        self._compile = lambda name: core.compile_model(
            core.read_model(Path(directory) / name), "CPU", {"INFERENCE_NUM_THREADS": threads}
        )
        self._mapping = self._compile(FILES[0])
        self._synthesis = None
        self._measure()

    def styles(self, normal: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return w (N, 512), not truncated, for standard normal rows (N, 512)."""
        return np.concatenate([self._mapping([row[None]])[0] for row in normal])

    def _free(self, number: int, seed: int) -> NDArray[np.float32]:
        """Return w of so many draws: without a picture they cost next to nothing."""
        return self.styles(np.random.default_rng(seed).standard_normal((number, LATENT_DIM), dtype=np.float32))

    def _measure(self) -> None:
        self._mean = self._free(4096, 4096).mean(0)
        w = self._truncated(self._free(20_000, 77))
        self._shift = w.mean(0, dtype=np.float64)
        values, vectors = np.linalg.eigh(np.cov(w.T, bias=True, dtype=np.float64))
        self._whiten, self._colour = vectors / np.sqrt(values), (vectors * np.sqrt(values)).T

    def _truncated(self, w: NDArray[np.float32]) -> NDArray[np.float32]:
        return (self._mean + TRUNCATION * (w - self._mean)).astype(np.float32)

    def w(self, index: int, seed: int) -> NDArray[np.float32]:
        """Return the truncated w of a draw, (1, 512)."""
        normal = np.random.default_rng([seed, index]).standard_normal(LATENT_DIM, dtype=np.float32)
        return self._truncated(self.styles(normal[None]))

    def latents(self, indices: Iterable[int], seed: int) -> NDArray[np.float32]:
        """Return the latents of these draws, (N, 512)."""
        # One by one: products of many rows round otherwise than those of few.
        return np.concatenate([((self.w(k, seed) - self._shift) @ self._whiten).astype(np.float32) for k in indices])

    def decode(self, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return pictures, uint8 (N, 3, 256, 256), of latents (N, 512): means over squares of 4 pixels."""
        self._synthesis = self._synthesis or self._compile(FILES[2])
        out = np.empty((len(latents), 3, SIZE, SIZE), dtype=np.uint8)
        for k, row in enumerate(np.asarray(latents, dtype=np.float64)):
            w = (self._shift + row @ self._colour).astype(np.float32)
            full = self._synthesis([w[None]])[0][0]
            small = (full.clip(-1, 1) + 1).reshape(3, SIZE, full.shape[1] // SIZE, SIZE, -1).mean((2, 4)) / 2
            out[k] = (small * 255).round()
        return out


class Kept:
    """Decodes latents, and keeps each picture in a file of its own: whatever ends a run, none is made twice.

    Args:
        decode: Latents (N, D) to pictures, uint8 (N, 3, S, S).
        directory: For the files, named after the latent.
    """

    def __init__(self, decode: Callable[[NDArray[np.float32]], NDArray[np.uint8]], directory: str | Path) -> None:
        self._decode, self._directory = decode, Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)

    def file(self, latent: NDArray[np.float32]) -> Path:
        """Return where the picture of a latent (D,) is, or will be."""
        name = hashlib.sha256(np.ascontiguousarray(latent, dtype="<f4").tobytes()).hexdigest()[:32]
        return self._directory / name[:2] / f"{name}.npy"

    def __call__(self, latents: Any) -> NDArray[np.uint8]:
        """Return pictures, uint8 (N, 3, S, S), of latents (N, D), an array or a tensor."""
        out = []
        for latent in np.asarray(latents, dtype=np.float32):
            file = self.file(latent)
            if not file.exists():
                file.parent.mkdir(exist_ok=True)
                unfinished = file.with_suffix(f".{os.getpid()}.part")
                with unfinished.open("wb") as stream:
                    np.save(stream, self._decode(latent[None])[0])
                unfinished.replace(file)
            out.append(np.load(file, allow_pickle=False))
        return np.stack(out)
