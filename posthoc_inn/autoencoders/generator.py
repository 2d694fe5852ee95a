"""Generators as decoders, without an encoder: t is fitted to draws of the generator (MSC 4.3, B.6)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from posthoc_inn.ambient import users_defaults
from posthoc_inn.autoencoders.adapter import Range
from posthoc_inn.autoencoders.base import Autoencoder
from posthoc_inn.autoencoders.draws import Draws, Known
from posthoc_inn.config import AutoencoderConfig
from posthoc_inn.errors import ConfigError, DataError, Problems, ShapeError, is_count, shown
from posthoc_inn.images import fit_canonical
from posthoc_inn.seeds import derived

Prior = Literal["normal"] | Callable[[int, torch.Generator], Tensor] | Tensor | str | Path
TOGETHER = 16
"""Latents that the generator gets at a time."""
SLACK = 0.25
"""How far outside of their range values of a picture may lie: overshoot does, another range lies farther."""
PROBED = 48
"""Values of one picture by which a generator is known again when a bundle is loaded."""
NO_ENCODER = (
    "The autoencoder is a generator, which has no encoder, and {what}. What needs z alone works: sample, "
    "explained_by_invariances, concept_relevance. Otherwise give pictures that generator.draws(...) has made, "
    "whose latents are known, or attach an Inverter: generator.inverter = "
    "Inverter().fit(generator, generator.draws(5000))."
)


class Inverts(Protocol):
    """What serves as the encoder of a generator; `posthoc_inn.Inverter` does."""

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the latent, each (B, D), for images (B, C, H, W) in [0, 1]."""


class GivenGenerator(Autoencoder):
    """A trained generator of the user's, frozen, as the decoder of an autoencoder without an encoder.

    It needs neither to be a torch module nor to be differentiable: an ONNX or OpenVINO file serves. t is fitted to
    draws: `Interpreter(model, layer, autoencoder=generator).fit(generator.draws(5000))`. A condition, such as the
    embedding of a class, belongs to the latent: the prior yields both, joined.

    Args:
        decode: Latents (B, D), float32, to images (B, C, H, W), a tensor or an array.
        latent_dim: D.
        prior: Where latents come from: "normal" for N(0, 1); a callable (n, torch.Generator) -> (n, D); latents (N, D)
            as a tensor, or as the one tensor of a .safetensors file.
        size: Side of the pictures that are shown and kept, in pixels; the generator's own by default. The explained
            model gets the generator's own pictures.
        channels: 1 or 3.
        image_range: "unit" when images lie in [0, 1], "symmetric" for [-1, 1].
        together: Latents that `decode` gets at a time; 1 for files of a fixed batch.

    Attributes:
        native_shape: Channels, height and width of its own pictures.
        inverter: What encodes photographs, or None.

    Raises:
        ConfigError: An argument is wrong; all problems at once.
        ShapeError: `decode` gives no images of these channels.
        DataError: Its values are not finite, or of another range.

    >>> basis = np.random.default_rng(0).normal(size=(4, 3 * 8 * 8)) / 20
    >>> decode = lambda w: (w.numpy() @ basis + 0.5).reshape(-1, 3, 8, 8)
    >>> generator = GivenGenerator(decode, 4)
    >>> draws = generator.draws(100)
    >>> len(draws), tuple(draws[0].shape), generator.decode(draws.latents[:2]).shape
    (100, (3, 8, 8), torch.Size([2, 3, 8, 8]))
    """

    inverter: Inverts | None

    def __init__(
        self,
        decode: Callable[[Tensor], Any],
        latent_dim: int,
        *,
        prior: Prior = "normal",
        size: int | None = None,
        channels: int = 3,
        image_range: Range = "unit",
        together: int = TOGETHER,
    ) -> None:
        super().__init__()
        problems = Problems("GivenGenerator")
        problems.check(callable(decode), f"decode must be callable, got {type(decode).__name__}")
        problems.check(is_count(latent_dim, 2), f"latent_dim must be at least 2, got {latent_dim!r}")
        problems.check(size is None or is_count(size, 8), f"size must be at least 8 pixels, got {size!r}")
        problems.check(channels in (1, 3), f"channels must be 1 or 3, got {channels}")
        problems.check(
            image_range in ("unit", "symmetric"), f"image_range is 'unit' or 'symmetric', got {image_range!r}"
        )
        problems.check(is_count(together, 1), f"together must be at least 1, got {together!r}")
        problems.raise_if_any()
        # What is a module, or belongs to one, goes along to devices, and counts when weights are compared.
        owner = decode if isinstance(decode, nn.Module) else getattr(decode, "__self__", None)
        self.decoder = owner.eval() if isinstance(owner, nn.Module) else None
        self._decode, self._width, self._together = decode, latent_dim, together
        self.image_range, self._channels = image_range, channels
        self.known = Known()
        # Not as a submodule: whether there is one does not make another generator.
        self.__dict__["inverter"] = None
        self._prior = _prior(prior, latent_dim)
        shape = tuple(self.native(self._prior(1, 0)).shape[1:])
        self.native_shape: tuple[int, int, int] = cast(tuple[int, int, int], shape)
        self.config = AutoencoderConfig(
            kind="generator", size=size or min(min(shape[1:]), 1024), channels=channels, latent_dim=latent_dim
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "inverter":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    @property
    def has_encoder(self) -> bool:
        """Whether pictures other than draws can be encoded."""
        return self.inverter is not None

    # ---- draws

    def draws(self, n: int, seed: int = 0, *, keep: str | Path | None = None, workers: int = 1) -> Draws:
        """Return the data that t is fitted to: `n` latents of the prior, and the pictures made from them.

        Args:
            n: How many.
            seed: Each draw is a function of seed and index.
            keep: Directory for pictures, as bytes at the generator's own size: every fit and every judge that reads
                these draws finds them there, and a killed one loses none.
            workers: Processes that make the pictures, each with a copy of the generator: as many times faster where
                `decode` keeps one core busy, no faster where it uses all of them. `decode` has to be picklable by
                cloudpickle; files and sessions are best opened when it is first called.

        Raises:
            ConfigError: `n` or `workers` is less than 1.
            DataError: The prior has fewer latents, or gives something else than (n, D).
        """
        if not is_count(n, 1):
            raise ConfigError(f"draws needs the number of pictures, at least 1, got {n!r}.")
        return Draws(self, self._prior(n, seed), keep=keep, workers=workers)

    # ---- decoding

    def native(self, latents: Tensor) -> Tensor:
        """Return pictures (B, C, H, W) in [0, 1], at the generator's own size, for latents (B, D)."""
        if latents.ndim != 2 or latents.shape[1] != self._width:
            raise ShapeError(f"Latents must have shape (B, {self._width}), got {tuple(latents.shape)}.")
        return torch.cat([self._made(part) for part in latents.split(self._together)])

    @functools.cached_property
    def is_differentiable(self) -> bool:
        """Whether `decode` passes gradients on; it is asked once, for one picture."""
        try:
            with torch.enable_grad():
                out = self._decode(self._prior(1, 0).to(self._device()).requires_grad_())
            return isinstance(out, Tensor) and out.requires_grad
        except Exception:  # NumPy, ONNX and OpenVINO refuse in words of their own
            return False

    def _device(self) -> torch.device:
        parameter = None if self.decoder is None else next(self.decoder.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    def _made(self, latents: Tensor) -> Tensor:
        given = latents.to(self._device()).float()
        if given.requires_grad and not self.is_differentiable:
            given = given.detach()
        try:
            with users_defaults():
                out = self._decode(given)
            images = out if isinstance(out, Tensor) else torch.from_numpy(np.ascontiguousarray(out))
        except Exception as error:  # a stranger's code
            raise DataError(
                f"The generator fails on latents {tuple(latents.shape)}, float32: {type(error).__name__}: "
                f"{shown(error, 200)}. For a file of a fixed batch pass together=1."
            ) from error
        if images.ndim != 4 or images.shape[:2] != (len(latents), self._channels):
            raise ShapeError(
                f"The generator must give images ({len(latents)}, {self._channels}, H, W) for latents "
                f"{tuple(latents.shape)}, got {tuple(images.shape)}; channels= says how many there are."
            )
        if images.dtype == torch.uint8:
            return images.to(latents.device).float() / 255
        images = images.to(latents.device).float()
        low, high = float(images.detach().min()), float(images.detach().max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise DataError("The generator gives values that are not finite. Look at its latents and its precision.")
        least = 0.0 if self.image_range == "unit" else -1.0
        outside = ((images < least - SLACK) | (images > 1 + SLACK)).double().mean()
        if float(outside) > 0.02:
            raise DataError(
                f"The generator gives values from {low:.3g} to {high:.3g}; image_range={self.image_range!r} means "
                f"[{least:.0f}, 1]. Pass image_range='symmetric' for [-1, 1], or scale them in decode."
            )
        return (images * 0.5 + 0.5 if self.image_range == "symmetric" else images).clamp(0, 1)

    def fitted(self, pictures: Tensor) -> Tensor:
        """Return pictures (B, C, H, W) at the size they are shown at."""
        return fit_canonical(pictures, self.config.size, self.config.channels)

    def decode(self, z_bar: Tensor) -> Tensor:
        """Return images (B, C, H, W) in [0, 1] for latents (B, D), at the size they are shown at."""
        return torch.cat([self.fitted(self.native(part)) for part in z_bar.split(self._together)])

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of z_bar, each (B, D): of draws the latent itself, with deviation 0.

        Raises:
            ConfigError: An image is no draw that was made, and there is no inverter.
        """
        latents, is_known = self.known.find(images)
        if latents is not None and bool(is_known.all()):
            return latents.to(images.device), torch.zeros_like(latents, device=images.device)
        if self.inverter is None:
            count = int((~is_known).sum())
            which = "this image is" if len(images) == 1 else f"{count} of these {len(images)} images are"
            raise ConfigError(NO_ENCODER.format(what=f"{which} none of its draws"))
        mean, std = self.inverter.encode(images)
        if latents is not None and bool(is_known.any()):
            pick = is_known.to(mean.device)[:, None]
            mean, std = torch.where(pick, latents.to(mean), mean), torch.where(pick, torch.zeros_like(std), std)
        return mean, std

    def with_inverter(self, inverter: Inverts | None) -> GivenGenerator:
        """Attach what encodes photographs, and return this generator."""
        self.inverter = inverter
        return self

    def remember(self, images: Tensor, latents: Tensor) -> None:
        """Let canonical images (B, C, H, W) in [0, 1] be known with their latents (B, D), as draws are."""
        self.known.add(self.fitted(images), latents)

    # ---- known again

    @property
    def probe(self) -> str:
        """A picture at a fixed latent as a few numbers: by it a bundle knows the generator again."""
        latent = 0.5 * torch.randn(1, self._width, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            picture = self.decode(latent)
        small = torch.nn.functional.interpolate(picture.mean(1, keepdim=True), (6, 8), mode="area")
        return " ".join(f"{v:.3f}" for v in small.flatten().tolist())

    def is_like(self, probe: str) -> bool:
        """Whether another generator's probe is this one's, but for rounding."""
        try:
            theirs = np.array([float(part) for part in probe.split()[: PROBED + 1]])
        except ValueError:
            return False
        own = np.array([float(part) for part in self.probe.split()])
        return theirs.shape == own.shape and bool(np.abs(theirs - own).max() <= 0.03)


def _prior(prior: Any, width: int) -> Callable[[int, int], Tensor]:
    """Return a function (n, seed) -> latents (n, D), each row a function of seed and index."""
    if isinstance(prior, str) and prior == "normal":
        return lambda n, seed: _rows(n, seed, lambda g: torch.randn(1, width, generator=g), width)
    if isinstance(prior, (str, Path)):
        prior = _read(Path(prior))
    if isinstance(prior, (Tensor, np.ndarray)):
        table = torch.as_tensor(prior).detach().cpu().float()
        if table.ndim != 2 or table.shape[1] != width or not bool(torch.isfinite(table).all()):
            raise DataError(
                f"Latents of the prior must be finite and of shape (N, {width}), got {tuple(table.shape)}; latent_dim= "
                "says their width."
            )
        return lambda n, seed: _picked(table, n, seed)
    if callable(prior):
        return lambda n, seed: _rows(n, seed, lambda g: _called(prior, g, width), width)
    raise ConfigError(
        "prior must be 'normal', a callable (n, generator) -> (n, D), latents (N, D) or a .safetensors file of them; "
        f"got {type(prior).__name__}."
    )


def _rows(n: int, seed: int, draw: Callable[[torch.Generator], Tensor], width: int) -> Tensor:
    latents = torch.empty(n, width)
    for index in range(n):
        latents[index] = draw(torch.Generator().manual_seed(derived(seed, "latent", index)))[0]
    return latents


def _called(prior: Callable[[int, torch.Generator], Any], generator: torch.Generator, width: int) -> Tensor:
    with torch.no_grad(), users_defaults():
        found = torch.as_tensor(prior(1, generator)).detach().cpu().float()
    if tuple(found.shape) != (1, width) or not bool(torch.isfinite(found).all()):
        raise DataError(
            f"The prior must give finite latents (n, {width}) for n and a torch.Generator, got {tuple(found.shape)}."
        )
    return found


def _picked(table: Tensor, n: int, seed: int) -> Tensor:
    if n > len(table):
        raise DataError(f"The prior has {len(table):,} latents, and {n:,} draws were asked for; ask for fewer.")
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(derived(seed, "latents")))
    return table[order[:n]]


def _read(path: Path) -> Tensor:
    from safetensors.torch import load_file

    if path.suffix != ".safetensors":
        raise ConfigError(f"prior must be 'normal' or a .safetensors file of latents, got {str(path)!r}.")
    try:
        found: Mapping[str, Tensor] = load_file(path)
    except Exception as error:  # safetensors raises its own kinds
        raise DataError(f"The latents {path} cannot be read: {' '.join(str(error).split())[:160]}.") from error
    if len(found) != 1:
        raise DataError(f"The file {path} must hold one tensor of latents (N, D), got {len(found)}.")
    return next(iter(found.values()))
