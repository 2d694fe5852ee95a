"""Autoencoders of diffusers for posthoc_inn: `load` in Python, ``diffusers:DIRECTORY`` as a registered name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from posthoc_inn.plugins.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from posthoc_inn.config import AutoencoderConfig
    from posthoc_inn_diffusers.autoencoders import DiffusersAutoencoder

__all__ = ["load", "register_autoencoders"]


def load(
    source: str,
    *,
    size: int,
    kind: str | None = None,
    noise: float = 0.3,
    subfolder: str | None = None,
    measure: Tensor | None = None,
) -> DiffusersAutoencoder:
    """Read an autoencoder of diffusers; only what names a hub's repository is downloaded.

    Args:
        source: A directory with config.json and its weights, or a repository of the hub ("owner/name").
        size: Side of its images, in pixels: what its halvings divide.
        kind: "kl", "tiny" or "dc"; None for what config.json says.
        noise: Least deviation of the standardised latent.
        subfolder: Where it stands in the directory or repository: "vae" in that of a whole pipeline.
        measure: Images (B, C, H, W) in [0, 1] over which shift and scale of each channel of the latent are measured,
            instead of the ones in config.json.

    Raises:
        ConfigError: An argument is wrong; all problems at once.
        DataError: The files are missing, cannot be had, read or used, or are of another class.
    """
    from posthoc_inn_diffusers.autoencoders import DiffusersAutoencoder
    from posthoc_inn_diffusers.reading import read_model

    model, found = read_model(source, kind=kind, subfolder=subfolder)
    autoencoder = DiffusersAutoencoder(model, found, size=size, noise=noise)
    if measure is not None:
        autoencoder.measure(measure)
    return autoencoder


def _no_names() -> list[str]:
    return []


def _factory(directory: str) -> Callable[..., nn.Module]:
    def build(config: AutoencoderConfig) -> nn.Module:
        from posthoc_inn_diffusers.autoencoders import DiffusersAutoencoder
        from posthoc_inn_diffusers.reading import read_model

        # A name may come from a file of a stranger's: it never leads to the network.
        model, kind = read_model(directory, downloads=False)
        return DiffusersAutoencoder(model, kind, size=config.size, channels=config.channels)

    return build


def _metadata(directory: str) -> dict[str, Any]:
    return {"licence": "Apache-2.0 (code)", "reference": "https://github.com/huggingface/diffusers"}


@hookimpl
def register_autoencoders(register: Register[nn.Module]) -> None:
    """Register every local directory as ``diffusers:DIRECTORY``."""
    register.open_ended("diffusers", names=_no_names, factory=_factory, metadata=_metadata)
