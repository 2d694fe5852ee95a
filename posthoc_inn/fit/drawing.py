"""Draws of a generator as the data of a fit: a number stands for so many, and they must be the generator's own."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch.utils.data import DataLoader, Subset

from posthoc_inn.autoencoders import GivenGenerator, draws_of
from posthoc_inn.errors import ConfigError, is_count
from posthoc_inn.fit.request import FitRequest, Subject
from posthoc_inn.images import BatchSource


def with_draws(request: FitRequest, subject: Subject) -> FitRequest:
    """Return `request` with draws of the generator in place of their number, and out of the loaders they are in.

    Raises:
        ConfigError: A number is given, and the autoencoder is no generator; or draws are another generator's.
    """
    found: dict[str, Any] = {"data": drawn(request.data, subject.autoencoder, subject.seed)}
    if isinstance(request.held_out, (DataLoader, BatchSource)):
        found["held_out"] = _bare(request.held_out)
    for name in ("data", "held_out"):
        parts = draws_of(found.get(name, getattr(request, name)))
        if parts is None:
            continue
        generator: Any = parts[0].generator
        if generator is not subject.autoencoder:
            raise ConfigError(
                f"{name} holds draws of a generator, which must be the autoencoder: pass autoencoder=generator to the "
                "Interpreter, the one that the draws were made with."
            )
        if request.draws != 1:
            raise ConfigError(
                f"draws={request.draws} means several passes over data that is augmented at random; for more "
                "pictures of a generator ask it for more: generator.draws(n)."
            )
        if request.image_metrics:
            raise ConfigError(
                "image_metrics compare reconstructions with images, and draws are their own; leave it out."
            )
    return dataclasses.replace(request, **found)


def drawn(data: Any, autoencoder: Any, seed: int) -> Any:
    """Return draws where `data` is their number; anything else as it is.

    Raises:
        ConfigError: It is a number, and the autoencoder is no generator.
    """
    if not is_count(data, 0):
        return _bare(data)
    if not isinstance(autoencoder, GivenGenerator):
        raise ConfigError(
            f"fit({data}) asks for draws of a generator, and the autoencoder is none: pass images, or "
            "autoencoder=GivenGenerator(decode, latent_dim)."
        )
    return autoencoder.draws(data, seed)


def _bare(data: Any) -> Any:
    """Return draws without the loader or the source that they are in, which would shuffle them."""
    inner: Any = data.dataset if isinstance(data, DataLoader) else data.data if isinstance(data, BatchSource) else None
    inner = inner.dataset if isinstance(inner, DataLoader) else inner
    if inner is None or draws_of(inner) is None:
        return data
    limit = data.limit if isinstance(data, BatchSource) else None
    return inner if limit is None else Subset(inner, range(min(limit, len(inner))))
