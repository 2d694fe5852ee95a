"""Between the user's tensors, the pictures of the autoencoder, and the inputs of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posthoc_inn.config import ImageSpec
from posthoc_inn.errors import DataError, ShapeError
from posthoc_inn.images.convert import check_images
from posthoc_inn.images.normalization import Normalization
from posthoc_inn.images.spec import apply_spec, fit_canonical

MODEL_DTYPES = ("float32", "float16", "bfloat16", "float64", "uint8")
"""Number types in which a model can get its images."""
MARGIN = 0.5
"""How far from [0, 1] values of an image may lie: noise and overshoot do, another range lies farther."""
OUTSIDE = 0.01
"""Share of an image's values that may lie farther."""


@dataclass(frozen=True)
class InputAdapter:
    """How the user's tensors become model inputs and pictures, and how pictures become model inputs.

    Attributes:
        spec: How the model wants canonical images.
        normalization: How the user's tensors came from images in [0, 1]; None when they are canonical images
            already, and the model gets them through `spec` (a registered backbone).
        image_size: Side of the autoencoder's images, in pixels.
        channels: Channels of the autoencoder's images.
        dtype: Number type in which the model gets its images, one of `MODEL_DTYPES`; bytes go from 0 to 255.
    """

    spec: ImageSpec
    normalization: Normalization | None
    image_size: int
    channels: int
    dtype: str = "float32"

    def read(self, images: Any) -> Tensor:
        """Return a user's tensors as the fit has read its data: float32 (B, C, H, W), bytes divided by 255.

        Raises:
            ShapeError: They are no tensor (B, C, H, W), or have other channels than the model takes.
            DataError: They are not finite, of a number type that is none of images, or of another range than the
                images of the fit.
        """
        if not isinstance(images, Tensor) or images.ndim != 4:
            got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ShapeError(f"Images must be a tensor (B, C, H, W), got {got}.")
        check_images(images, where="the query")
        if self.normalization is not None and images.shape[1] != self.spec.channels:
            raise ShapeError(
                f"Images must have {self.spec.channels} channels, as those of the fit had; got {tuple(images.shape)}."
            )
        read = images.float().div(255) if images.dtype == torch.uint8 else images.float()
        self._check_range(read, images)
        return read

    def _check_range(self, read: Tensor, images: Tensor) -> None:
        canonical = read if self.normalization is None else self.normalization.undo(read)
        outside = ((canonical < -MARGIN) | (canonical > 1 + MARGIN)).flatten(1).double().mean(1)
        if bool((outside > OUTSIDE).any()):
            low, high = float(images.min()), float(images.max())
            expected = "[0, 1]"
            if self.normalization is not None and not self.normalization.is_identity:
                ends = self.normalization.apply(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1))
                expected = f"about [{float(ends.min()):.3g}, {float(ends.max()):.3g}]"
            raise DataError(
                f"Images have values from {low:.4g} to {high:.4g} ({str(images.dtype).removeprefix('torch.')}); those "
                f"of the fit lay in {expected}. Treat them as you treated the data of the fit."
            )

    def to_model(self, images: Tensor) -> Tensor:
        """Return what the model gets for the user's tensors (B, C, H, W), read by `read` or by a `BatchSource`."""
        if self.normalization is not None:
            return self._typed(images)  # laid out as the user's are
        return self.images_to_model(images)

    def to_images(self, images: Tensor) -> Tensor:
        """Return canonical images of the autoencoder's size for the user's tensors (B, C, H, W)."""
        if self.normalization is not None:
            images = self.normalization.undo(images)
        return fit_canonical(images, self.image_size, self.channels)

    def from_pictures(self, images: Tensor) -> Tensor:
        """Return canonical images of the autoencoder's size for canonical images (B, C, H, W) of any size."""
        return fit_canonical(images, self.image_size, self.channels)

    def images_to_model(self, images: Tensor) -> Tensor:
        """Return model inputs for canonical images (B, C, H, W) of any size, differentiably (but for bytes)."""
        # Decoded and resized pictures may lie in memory with channels last, which a model's `view` cannot take.
        return self._typed(apply_spec(images, self.spec)).contiguous()

    def _typed(self, images: Tensor) -> Tensor:
        if self.dtype == "uint8":
            images = images.mul(255).round().clamp(0, 255)
        return images.to(getattr(torch, self.dtype))
