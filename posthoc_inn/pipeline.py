"""The fitted parts joined: images to z, z_bar and v, and back to images (MSC eq. 1-5). Everything runs in chunks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from posthoc_inn.autoencoders import Autoencoder
from posthoc_inn.autoencoders.base import CHUNK
from posthoc_inn.errors import ConfigError, DataError, ShapeError
from posthoc_inn.features import LayerExtractor
from posthoc_inn.flows import ConditionalFlow, computing_in
from posthoc_inn.images import BatchSource, InputAdapter, some_of, some_places
from posthoc_inn.objectives import flow_nll
from posthoc_inn.rows.code_noise import CodeNoise
from posthoc_inn.rows.world import World


def in_chunks(function: Callable[[Tensor], Tensor], rows: Tensor, size: int = CHUNK) -> Tensor:
    """Return `function` of `rows` (B, ...), computed `size` rows at a time."""
    if len(rows) <= size:
        return function(rows)
    return torch.cat([function(part) for part in rows.split(size)])


@dataclass(frozen=True)
class Pipeline:
    """Φ, E, D and t, ready to use.

    Attributes:
        extractor: Φ and Ψ.
        adapter: Between the user's tensors, pictures and model inputs.
        autoencoder: E and D.
        flow: t.
        device: Where they live.
        world: What z of the images that t was fitted to is like; images unlike them are warned of. None where it is not
            known, as in older bundles.
        code_noise: Noise that codes got besides the encoder's own before t saw them; None for none.
    """

    extractor: LayerExtractor
    adapter: InputAdapter
    autoencoder: Autoencoder
    flow: ConditionalFlow
    device: torch.device
    world: World | None = None
    code_noise: CodeNoise | None = None

    @property
    def latent_dim(self) -> int:
        """D, the width of z_bar and v."""
        return self.flow.flow.config.dim

    @property
    def z_shape(self) -> tuple[int, ...]:
        """Shape of z without the batch."""
        return self.flow.conditioner.config.z_shape

    def z_of(self, images: Tensor | None, z: Tensor | None = None) -> Tensor:
        """Return z (B, *z_shape): that of the user's tensors (B, C, H, W), or `z` itself once it is checked.

        Raises:
            ConfigError: Not exactly one of the two is given.
            ShapeError: A shape is wrong.
        """
        if (images is None) == (z is None):
            raise ConfigError("Give either images or z= (representations of the layer).")
        if z is None:
            return self.told(self.features(self.adapter.read(images)))
        if not isinstance(z, Tensor) or z.shape[1:] != self.z_shape or not len(z):
            got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise ShapeError(f"z must be a tensor (B, {', '.join(map(str, self.z_shape))}) of the layer, got {got}.")
        if not bool(torch.isfinite(z).all()):
            raise DataError("z has values that are not finite.")
        return self.told(z.float())

    def told(self, z: Tensor) -> Tensor:
        """Return z (B, *z_shape), and warn of images unlike those that t was fitted to (`OutsideWarning`)."""
        if self.world is not None:
            clipped = self.flow.conditioner.clipped(z.to(self.device))
            self.world.tell(z, clipped, is_drawn=hasattr(self.autoencoder, "native"))
        return z

    def z_from(self, data: Any, z: Tensor | None = None, *, limit: int, seed: int = 0) -> Tensor:
        """Return z of up to `limit` images of a loader, data set or tensor, or of as many given representations.

        Of more than that, some are chosen at random; of a stream, the first (`some_of`).
        """
        if z is not None or data is None:
            given = self.z_of(data, z)
            return given[some_places(len(given), limit, seed=seed)]
        source = BatchSource(some_of(data, limit, seed=seed), batch_size=128, limit=limit)
        return torch.cat([self.features(batch["images"]) for batch in source.batches()])

    def rows_from(
        self, data: Any, z: Tensor | None = None, *, limit: int, seed: int = 0
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Return what `z_from` does, and mean and deviation of z_bar for the same images, where they can be encoded."""
        if z is not None or data is None:
            return self.z_from(data, z, limit=limit, seed=seed), None
        source = BatchSource(some_of(data, limit, seed=seed), batch_size=128, limit=limit)
        found, encoded = [], []
        for batch in source.batches():
            found.append(self.features(batch["images"]))
            encoded.append(self.encode(batch["images"]) if self.knows(batch["images"]) else None)
        kept = [part for part in encoded if part is not None]
        joined = torch.cat([p[0] for p in kept]), torch.cat([p[1] for p in kept])
        return torch.cat(found), joined if len(kept) == len(encoded) else None

    def means(self, images: Tensor) -> Tensor:
        """Return the encoder's mean of z_bar, (B, D), for the user's tensors (B, C, H, W)."""
        return self.encode(self.adapter.read(images))[0]

    def pictures(self, latents: Tensor) -> Tensor:
        """Return images (..., C, H, W) in [0, 1] for latents (..., D)."""
        decoded = self.decode(latents.reshape(-1, latents.shape[-1]))
        return decoded.reshape(*latents.shape[:-1], *decoded.shape[1:])

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return z = Φ(x), shape (B, *z_shape), for the user's tensors (B, C, H, W)."""
        run = lambda x: self.extractor.features(self.adapter.to_model(x.to(self.device))).float()  # noqa: E731
        return in_chunks(run, images, 128)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Return the model's prediction f(x), batch first, for the user's tensors (B, C, H, W)."""
        run = lambda x: self.extractor.predict(self.adapter.to_model(x.to(self.device)))  # noqa: E731
        return in_chunks(run, images, 128)

    @torch.no_grad()
    def ask(self, images: Tensor) -> Tensor:
        """Return the same where there is something to compare; (B, 0) for a model without a single prediction."""
        run = lambda x: self.extractor.features_and_prediction(self.adapter.to_model(x.to(self.device)))[1]  # noqa: E731
        return in_chunks(run, images, 128)

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of z_bar, each (B, D), for the user's tensors (B, C, H, W).

        The deviation is that of the codes that t was fitted to: with `code_noise`, where there is any.
        """
        adapter = self.adapter
        parts = [
            self.autoencoder.encode(adapter.to_square(adapter.to_images(x.to(self.device))))
            for x in images.split(CHUNK)
        ]
        mean, std = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
        return mean, std if self.code_noise is None else self.code_noise.added(std)

    @torch.no_grad()
    def decode(self, z_bar: Tensor) -> Tensor:
        """Return pictures (B, C, H, W) in [0, 1] for latents (B, D), at the true ratio of their sides."""
        return in_chunks(lambda z: self.adapter.from_square(self.autoencoder.decode(z.to(self.device))), z_bar)

    @torch.no_grad()
    def reconstructions(self, images: Tensor) -> Tensor:
        """Return D(E(x)), pictures (B, C, H, W), for the user's tensors; the images themselves where E cannot tell."""
        if not self.knows(images):
            return self.adapter.to_images(images.to(self.device))
        return self.decode(self.encode(images)[0])

    def knows(self, images: Tensor) -> bool:
        """Whether the user's tensors (B, C, H, W) can be encoded: a generator without an inverter knows its draws."""
        if getattr(self.autoencoder, "has_encoder", True):  # a plugin's own module may lack it
            return True
        known: Any = self.autoencoder
        return bool(known.known.find(self.adapter.to_images(images.to(self.device)))[1].all())

    @torch.no_grad()
    def context(self, z: Tensor) -> Tensor:
        """Return H(z), shape (B, context_dim): all that the couplings of t see of z (B, *z_shape)."""
        return in_chunks(lambda part: self.flow.context(part.to(self.device)), z)

    @torch.no_grad()
    def sample_latents(self, context: Tensor, v: Tensor, *, precision: Literal["32", "bf16"] = "32") -> Tensor:
        """Return t⁻¹(v given z), shape (B, N, D).

        Args:
            context: H(z), shape (B, context_dim).
            v: Invariances, shape (B, N, D), or (N, D) for the same ones at every z.
            precision: Of the matrix products.
        """
        if v.ndim == 2:
            v = v.expand(len(context), *v.shape)
        if v.ndim != 3 or v.shape[0] != len(context) or v.shape[2] != self.latent_dim:
            raise ShapeError(
                f"v must have shape (B, N, {self.latent_dim}) with B = {len(context)}, or (N, {self.latent_dim}); "
                f"got {tuple(v.shape)}."
            )
        with computing_in(self.flow, torch.bfloat16 if precision == "bf16" else None):
            return self.flow.inverse_many(v, context)

    @torch.no_grad()
    def invariances(self, z_bar: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return v = t(z_bar given z), shape (B, D), and the negative log-likelihood (B,) in nats."""
        outs = [
            self.flow(part, c) for part, c in zip(z_bar.to(self.device).split(CHUNK), context.split(CHUNK), strict=True)
        ]
        v = torch.cat([o[0] for o in outs])
        return v, flow_nll(v, torch.cat([o[1] for o in outs]))

    @torch.no_grad()
    def ask_about(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and the model's output for pictures of latents (B, D); of a generator, its own, not resized ones."""
        native = getattr(self.autoencoder, "native", None)
        if native is None:
            return self.ask_model(self.decode(latents))
        # Large ones: a few at a time.
        parts = [self._ask(native(part.to(self.device)), self.adapter.images_to_model) for part in latents.split(16)]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    @torch.no_grad()
    def ask_model(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return z (B, *z_shape) and the model's output for pictures (B, C, H, W), as `decode` makes them."""
        return self._ask(images, self.adapter.pictures_to_model)

    def _ask(self, images: Tensor, inputs: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        parts = [self.extractor.features_and_prediction(inputs(part.to(self.device))) for part in images.split(128)]
        return torch.cat([p[0].float() for p in parts]), torch.cat([p[1] for p in parts])
