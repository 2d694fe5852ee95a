"""A decoder trained directly on z, one picture for each (Dosovitskiy & Brox 2016): what t is compared with."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_inn.autoencoders import Autoencoder
from posthoc_inn.config import ConditionerConfig
from posthoc_inn.errors import ConfigError, DataError
from posthoc_inn.flows.conditioner import Conditioner
from posthoc_inn.generators import lent_generators
from posthoc_inn.rows.cache import Cache, unit
from posthoc_inn.seeds import derived
from posthoc_inn.training.tasks import Shuffle

LEAST = 20
"""Rows it can be trained on: a tenth of them says when to stop."""
LOOKS = 2000
"""Rows that are looked at for that, at the most."""
PART = 256
"""Rows that are decoded at a time."""


class DirectDecoder(nn.Module):
    """Pictures straight from z: an embedding like t's H, a linear layer to D numbers, and a decoder like the fit's.

    The decoder starts with the weights of the fit's own, and is trained further with all else: it sees as much of z as
    t does, and begins with all that D knows. There is one picture for each z. With squared error the best one is the
    mean of all images that share z, which is no image itself where they differ.

    Args:
        autoencoder: The fit's, which stays as it is.
        conditioner: Shape of H; its seed is that of all initial weights.

    Attributes:
        trained: Parameters of the decoder that are trained.

    Raises:
        ConfigError: The decoder cannot be copied, or no gradient goes through it.
    """

    def __init__(self, autoencoder: Autoencoder, conditioner: ConditionerConfig) -> None:
        super().__init__()
        if not getattr(autoencoder, "has_encoder", True):
            raise ConfigError(
                "A decoder on z is compared with autoencoders; this fit has a generator, which is not trained."
            )
        self.embedding = Conditioner(conditioner)
        width = autoencoder.latent_dim
        with lent_generators(derived(conditioner.seed, "direct decoder")):
            self.head = nn.Linear(conditioner.context_dim, width)
        try:
            self.own: Any = copy.deepcopy(autoencoder)
        except Exception as error:
            raise ConfigError(
                f"The decoder of this {type(autoencoder).__name__} cannot be copied, to be trained on z: {error}"
            ) from error
        self.trained = self._open()

    def _open(self) -> int:
        """Let what a picture depends on be trained, and nothing else (the encoder); return its size."""
        self.own.requires_grad_(True)
        self.own.eval()
        parameters = list(self.own.parameters())
        latents = torch.zeros(2, self.head.out_features, requires_grad=True)
        if parameters:
            latents = latents.to(parameters[0].device).detach().requires_grad_()
        with torch.enable_grad():
            pictures = self._pictures(latents)
            wanted = [latents, *parameters]
            found = (
                torch.autograd.grad(pictures.sum(), wanted, allow_unused=True)
                if pictures.requires_grad
                else [None] * len(wanted)
            )
        for parameter, gradient in zip(parameters, found[1:], strict=True):
            parameter.requires_grad_(gradient is not None)
        if found[0] is None:
            raise ConfigError(
                "No gradient goes through the decoder from its picture to its latent: it cannot be trained on z."
            )
        return sum(p.numel() for p in parameters if p.requires_grad)

    def _pictures(self, latents: Tensor) -> Tensor:
        # What lies outside [0, 1] has no gradient once it is clamped.
        decode = getattr(self.own, "decode_unclamped", self.own.decode)
        pictures: Tensor = decode(latents)
        return pictures

    def forward(self, z: Tensor) -> Tensor:
        """Return pictures (B, C, H, W) for z (B, *z_shape); those of [0, 1], and what lies around it."""
        return self._pictures(self.head(self.embedding(z)))

    @torch.no_grad()
    def pictures(self, z: Tensor) -> Tensor:
        """Return pictures (B, C, H, W) in [0, 1] for z (B, *z_shape)."""
        device = self.head.weight.device
        return torch.cat([self(part.to(device).float()).clamp(0, 1) for part in z.split(PART)])


class _Loss(nn.Module):
    """Mean squared error of pictures in [-1, 1]: the image metric of the built-in autoencoders (MSC A.1)."""

    def __init__(self, decoder: DirectDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, z: Tensor, images: Tensor) -> Tensor:
        error: Tensor = (2 * (self.decoder(z) - unit(images))).square().mean()
        return error


class DirectTask:
    """Trains a decoder on the rows of a fit, a random tenth of which says when to stop.

    Args:
        decoder: What is trained; its standardisation of z is fitted here, where it is not yet.
        rows: Cache with images and z.
        batch_size: Rows a step.
        seed: Of their order, and of the tenth.

    Raises:
        DataError: There are too few rows, or rows without pictures.
    """

    name = "decoder on z"

    def __init__(self, decoder: DirectDecoder, rows: Cache, *, batch_size: int, seed: int) -> None:
        if len(rows) < LEAST or "images" not in rows:
            raise DataError(
                f"A decoder on z is trained on pictures and their z, {LEAST} at least; there are {len(rows)} rows"
                f"{'' if 'images' in rows else ', without pictures'}."
            )
        self.module, self._rows = _Loss(decoder), rows
        order = rows.some(None, seed=derived(seed, "direct"))
        kept = max(1, len(order) // 10)
        self._looks, self._order = order[:kept][:LOOKS], order[kept:]
        self._shuffle = Shuffle(len(self._order), batch_size, seed)
        if not decoder.embedding.is_initialized:
            decoder.embedding.fit_standardization(part.float() for (part,) in rows.batches(PART, "z"))

    def batch(self, step: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return z (B, *z_shape) and cached images (B, C, H, W) uint8."""
        index = self._order[self._shuffle.index(step)]
        return self._rows["z"].rows(index).float(), self._rows["images"].rows(index)

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Return the squared error of pictures in [-1, 1] on the rows that are not trained on."""
        device, total = self.module.decoder.head.weight.device, 0.0
        for part in self._looks.split(PART):
            z, images = self._rows["z"].rows(part).float(), self._rows["images"].rows(part)
            total += float(self.module(z.to(device), images.to(device))) * len(part)
        return {"loss": total / len(self._looks)}
