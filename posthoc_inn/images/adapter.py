"""Between the user's tensors, the pictures of the autoencoder, and the inputs of the model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from posthoc_inn.config import ImageSpec
from posthoc_inn.images.normalization import Normalization
from posthoc_inn.images.spec import apply_spec, fit_canonical


@dataclass(frozen=True)
class InputAdapter:
    """How the user's tensors become model inputs and pictures, and how pictures become model inputs.

    Attributes:
        spec: How the model wants canonical images.
        normalization: How the user's tensors came from images in [0, 1]; None when they are canonical images
            already, and the model gets them through `spec` (a registered backbone).
        image_size: Side of the autoencoder's images, in pixels.
        channels: Channels of the autoencoder's images.
    """

    spec: ImageSpec
    normalization: Normalization | None
    image_size: int
    channels: int

    def to_model(self, images: Tensor) -> Tensor:
        """Return what the model is fed for the user's tensors (B, C, H, W)."""
        return images if self.normalization is not None else apply_spec(images, self.spec)

    def to_images(self, images: Tensor) -> Tensor:
        """Return canonical images of the autoencoder's size for the user's tensors (B, C, H, W)."""
        if self.normalization is not None:
            images = self.normalization.undo(images)
        return fit_canonical(images, self.image_size, self.channels)

    def from_pictures(self, images: Tensor) -> Tensor:
        """Return canonical images of the autoencoder's size for canonical images (B, C, H, W) of any size."""
        return fit_canonical(images, self.image_size, self.channels)

    def images_to_model(self, images: Tensor) -> Tensor:
        """Return model inputs for canonical images (B, C, H, W) of any size, differentiably."""
        return apply_spec(images, self.spec)
