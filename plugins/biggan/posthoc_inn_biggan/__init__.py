"""BigGAN as a decoder for posthoc_inn: `generator` in Python, ``biggan:FILE`` as a registered name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posthoc_inn.plugins.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    from torch import nn

    from posthoc_inn.autoencoders.generator import GivenGenerator
    from posthoc_inn.config import AutoencoderConfig

__all__ = ["generator", "register_autoencoders"]


def generator(
    checkpoint: str | Path,
    *,
    layout: str = "auto",
    truncation: float = 0.5,
    classes: Sequence[int] | None = None,
    codes: str | Path | None = None,
    size: int | None = None,
    steps: int = 2000,
    seed: int = 0,
) -> GivenGenerator:
    """Read a generator of BigGAN from a local file, as a decoder without an encoder (MSC B.6).

    Its latent is (z, h'): z of the generator, 140 wide in the original of 256 px, and h' the code of a class, 128 wide,
    by a small VAE over the embeddings of all classes, which is trained here: half a minute for a thousand.

    Args:
        checkpoint: A .safetensors file, or one of PyTorch's (.pth, .bin), read without running code from it.
        layout: "original", "deep", or "auto" for what the names in it tell.
        truncation: In (0, 1]: z is drawn from a normal distribution cut off at 2, times this. Less is better pictures,
            more is more different ones.
        classes: Numbers of the classes to draw; None for all.
        codes: A .safetensors file for the VAE: read where it exists, else trained and written. Bundles need the very
            same VAE, which training on another machine does not give.
        size: Side of the pictures that are shown and kept, in pixels; the generator's own by default.
        steps: Of the VAE.
        seed: Of the VAE.

    Raises:
        ConfigError: An argument is wrong.
        DataError: The file is missing, cannot be read, or is of neither layout.
    """
    from posthoc_inn.autoencoders.generator import GivenGenerator
    from posthoc_inn_biggan.decoder import ClassDecoder, read_codes, read_network

    network = read_network(checkpoint, layout=layout, truncation=truncation)
    vae = read_codes(network, codes, steps=steps, seed=seed)
    decoder = ClassDecoder(network, vae, truncation=truncation, only=classes)
    return GivenGenerator(decoder, decoder.latent_dim, prior=decoder.prior, size=size)


def _no_names() -> list[str]:
    return []


def _factory(checkpoint: str) -> Callable[..., nn.Module]:
    def build(config: AutoencoderConfig) -> nn.Module:
        codes = Path(f"{checkpoint}.codes.safetensors")
        return generator(checkpoint, codes=codes if codes.is_file() else None, size=config.size)

    return build


def _metadata(checkpoint: str) -> dict[str, Any]:
    return {"licence": "MIT (code)", "reference": "Brock et al. 2019, arXiv:1809.11096"}


@hookimpl
def register_autoencoders(register: Register[nn.Module]) -> None:
    """Register every local checkpoint as ``biggan:FILE``; codes of its classes are read from FILE.codes.safetensors."""
    register.open_ended("biggan", names=_no_names, factory=_factory, metadata=_metadata)
