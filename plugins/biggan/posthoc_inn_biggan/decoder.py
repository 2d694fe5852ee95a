"""BigGAN as a decoder: z_bar is (z, h'), z of the generator and h' the code of a class (MSC B.6)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from posthoc_inn.errors import ConfigError, DataError, Problems, is_count
from posthoc_inn.files import replace_file, writing
from posthoc_inn.weights import load_into, load_state
from posthoc_inn_biggan.dequantization import STEPS, DequantizedClass
from posthoc_inn_biggan.layouts import LAYOUTS, convert
from posthoc_inn_biggan.network import BigGAN

CUT = 2.0
"""z is drawn from a normal distribution cut off here, then multiplied by the truncation, as the publications do."""


def read_network(checkpoint: str | Path, *, layout: str = "auto", truncation: float = 0.5) -> BigGAN:
    """Read a generator from a local checkpoint, in eval mode.

    Args:
        checkpoint: A .safetensors file, or one of PyTorch's, read without running code from it.
        layout: "original", "deep", or "auto" for what the names in it tell.
        truncation: In (0, 1]; statistics are chosen by it where the checkpoint has several.

    Raises:
        ConfigError: An argument is wrong.
        DataError: The file is missing, cannot be read, or is of neither layout.
    """
    problems = Problems("a BigGAN generator")
    known = ("auto", *LAYOUTS)
    problems.check(layout in known, f"layout is {' or '.join(map(repr, known))}, got {layout!r}")
    problems.check(0 < truncation <= 1, f"truncation must be in (0, 1], got {truncation}")
    problems.raise_if_any()
    state = load_state(checkpoint)
    architecture, tensors = convert(state, layout=layout, truncation=truncation, source=str(checkpoint))
    with torch.device("meta"):
        network = BigGAN(architecture)
    network = network.to_empty(device="cpu")
    load_into(network, tensors, source=str(checkpoint))
    return network.float().eval().requires_grad_(False)


class ClassDecoder(nn.Module):
    """A generator with its classes dequantised: latents (B, D) to pictures.

    Args:
        network: The generator.
        classes: Codes of its classes.
        truncation: z is drawn from a normal distribution cut off at 2, times this.
        only: Numbers of the classes to draw from; None for all.
    """

    def __init__(
        self, network: BigGAN, classes: DequantizedClass, *, truncation: float, only: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.network, self.classes, self.truncation = network, classes, truncation
        count = network.architecture.classes
        self.only = list(range(count)) if only is None else list(only)
        if not self.only or not all(type(k) is int and 0 <= k < count for k in self.only):
            raise ConfigError(f"classes are numbers from 0 to {count - 1}, at least one, got {self.only[:8]}.")

    @property
    def latent_dim(self) -> int:
        """D, the width of z and of the code of a class together."""
        return self.network.architecture.z_dim + self.classes.code_dim

    def forward(self, latents: Tensor) -> Tensor:
        """Return pictures (B, 3, H, W) in [0, 1] for latents (B, D)."""
        z, code = latents.split([self.network.architecture.z_dim, self.classes.code_dim], 1)
        images: Tensor = self.network(z, self.classes.decode(code))
        return images * 0.5 + 0.5

    @torch.no_grad()
    def prior(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw latents (n, D): z from the truncated normal, the class evenly, its code from the code's density."""
        z = self.truncation * truncated_normal((n, self.network.architecture.z_dim), generator)
        drawn = torch.tensor(self.only)[torch.randint(len(self.only), (n,), generator=generator)]
        return torch.cat([z, self.codes(drawn, generator)], 1)

    def codes(self, numbers: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a code (B, code_dim) for each class in `numbers` (B,)."""
        embedded = self.network.embedding.detach()
        mean, std = self.classes.encode(embedded[numbers.to(embedded.device)])
        noise = torch.randn(mean.shape, generator=generator)
        return mean.cpu() + std.cpu() * noise

    def nearest(self, latents: Tensor) -> Tensor:
        """Return the numbers (B,) of the classes whose embeddings lie nearest to those of latents (B, D)."""
        code = latents[:, self.network.architecture.z_dim :]
        return torch.cdist(self.classes.decode(code), self.network.embedding).argmin(1)


def truncated_normal(shape: tuple[int, ...], generator: torch.Generator, cut: float = CUT) -> Tensor:
    """Draw from a standard normal distribution that is cut off at `cut` on both sides."""
    inside = math.erf(cut / math.sqrt(2))
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    return (math.sqrt(2) * torch.erfinv(uniform * inside)).float().clamp(-cut, cut)


def read_codes(
    network: BigGAN, codes: str | Path | None = None, *, steps: int = STEPS, seed: int = 0
) -> DequantizedClass:
    """Read the codes of a generator's classes, or train them; see `posthoc_inn_biggan.generator`.

    Raises:
        ConfigError: `steps` is no number of steps.
        DataError: The file cannot be read or written, or is for other classes.
    """
    if not is_count(steps, 1):
        raise ConfigError(f"steps must be at least 1, got {steps!r}.")
    embeddings = network.embedding.detach()
    width = network.architecture.class_dim
    if codes is None or not Path(codes).exists():
        vae = DequantizedClass.fit(embeddings, code_dim=width, steps=steps, seed=seed)
        if codes is not None:
            with writing(codes):
                replace_file(Path(codes), to_bytes(vae.state_dict()))
        return vae
    vae = DequantizedClass(width, code_dim=width)
    load_into(vae, load_state(codes), source=str(codes))
    if not torch.allclose(vae.center, embeddings.mean(0), rtol=1e-3, atol=1e-4 * float(vae.spread)):
        raise DataError(f"{codes} has codes for the classes of another generator. Name another file to be written.")
    return vae.eval().requires_grad_(False)
