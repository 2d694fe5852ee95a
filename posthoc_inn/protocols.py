"""What the framework asks of its parts: structural types over tensors, nothing to inherit from."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class FeatureExtractor(Protocol):
    """Φ and Ψ of a model f = Ψ ∘ Φ, cut at a layer (MSC section 3)."""

    def features(self, inputs: Tensor) -> Tensor:
        """Return z = Φ(x), shape (B, *z_shape), for model inputs (B, C, H, W)."""

    def predict(self, inputs: Tensor) -> Tensor:
        """Return the model's output f(x), batch first."""

    def resume(self, inputs: Tensor, z: Tensor) -> Tensor:
        """Return Ψ(z): the model's output with the layer's output replaced by `z`."""


@runtime_checkable
class Encoder(Protocol):
    """The stochastic encoder E of MSC A.1."""

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, each (B, D), of z_bar for images (B, C, H, W) in [0, 1]."""


@runtime_checkable
class Decoder(Protocol):
    """The decoder D of MSC A.1."""

    def decode(self, z_bar: Tensor) -> Tensor:
        """Return images (B, C, H, W) in [0, 1] for latents (B, D)."""


@runtime_checkable
class Flow(Protocol):
    """An invertible network between data and base variable, conditional or not."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data (B, D) to the base; return it with `log_det`, shape (B,), in nats."""

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        """Map the base (B, D) back to data."""


@runtime_checkable
class ConceptSource(Protocol):
    """Draws pairs of images that share, or differ in, semantic concepts (IIN section 3.2, MSC eq. 9-13).

    Images are named by their index in the data set. A source that brings images of its own (stylised ones, folders
    of pairs) also has ``extra``, a map-style data set of canonical images (C, H, W) in [0, 1], which are numbered on
    from the data set's last index; they are encoded once, like the others. Where these were made from images of the
    data set, ``extra_of`` tells from which: the index of each, (len(extra),), -1 for none. What was made from held-out
    images is left out of training.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the concepts, in the order of the factors that they get."""

    def pairs(self, n: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return indices a (n,), b (n,) and the boolean `shared`, shape (n, K + 1): which factors each pair shares.

        Column 0 is the residual's; column 1 + i is that of the concept ``names[i]``. A pair that differs in one
        concept and agrees in all else shares every column but that one.
        """
