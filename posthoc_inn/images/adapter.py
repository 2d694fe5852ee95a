"""Between the user's tensors, the pictures of the autoencoder, and the inputs of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from posthoc_inn.config import ImageSpec
from posthoc_inn.errors import DataError, ShapeError
from posthoc_inn.images.convert import check_images
from posthoc_inn.images.normalization import Normalization
from posthoc_inn.images.spec import (
    LONGEST,
    apply_spec,
    check_canonical,
    fit_canonical,
    framed,
    match_channels,
    normalize,
    resize,
)

MODEL_DTYPES = ("float32", "float16", "bfloat16", "float64", "uint8")
"""Number types in which a model can get its images."""
MARGIN = 0.5
"""How far from [0, 1] values of an image may lie: noise and overshoot do, another range lies farther."""
OUTSIDE = 0.01
"""Share of an image's values that may lie farther."""
ASPECT = 0.02
"""How far the ratio of an image's sides may be off, as a share: sides are whole numbers of pixels."""
Frame = Literal["view", "square"]
"""What of an image its picture shows: what the model looks at, or the central square of the whole."""


@dataclass(frozen=True)
class InputAdapter:
    """How the user's tensors become model inputs and pictures, and how pictures become model inputs.

    A picture shows what the model looks at, all of it and nothing else, at the true ratio of its sides: of the user's
    own tensors the whole; of images that `spec` prepares the part that its central crop leaves. The model gets a
    picture with no further crop. The autoencoder's images are squares, into which a picture is squeezed and from which
    a decoded one is stretched back (`to_square`, `from_square`): unlike with padding, none of its pixels goes to
    borders. Squares stay squares in everything that is shown.

    Attributes:
        spec: How the model wants canonical images.
        normalization: How the user's tensors came from images in [0, 1]; None when they are canonical images
            already, and the model gets them through `spec` (a registered backbone).
        image_size: Side of the autoencoder's images, in pixels.
        channels: Channels of the autoencoder's images.
        dtype: Number type in which the model gets its images, one of `MODEL_DTYPES`; bytes go from 0 to 255.
        frame: "view", as above; or "square": pictures show the central square of whole images, and the model gets them
            as it gets images, through `spec`. So it is with a generator, which frames its pictures itself, and in
            bundles of earlier versions.
    """

    spec: ImageSpec
    normalization: Normalization | None
    image_size: int
    channels: int
    dtype: str = "float32"
    frame: Frame = "view"

    @property
    def picture_shape(self) -> tuple[int, int]:
        """Height and width of pictures: the shorter side is that of the autoencoder's, the ratio the model's input's.

        Very long ones are kept to four times the pixels of the autoencoder's square.
        """
        size = self.image_size
        if self.frame == "square" or self.spec.size is None or self.spec.size[0] == self.spec.size[1]:
            return size, size
        height, width = self.spec.size
        ratio = max(height, width) / min(height, width)
        short = max(1, round(size * min(1.0, (LONGEST / ratio) ** 0.5)))
        long = max(1, round(short * ratio))
        return (short, long) if height < width else (long, short)

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
        """Return what the model gets for the user's tensors (B, C, H, W), read by `read` or by a `BatchSource`.

        Raises:
            ShapeError: Their sides have another ratio than those of the fit: no picture could show them.
        """
        if self.normalization is not None:
            self._check_ratio(images, "Images", "those of the fit", self.spec.size)
            return self._typed(images)  # laid out as the user's are
        return self.images_to_model(images)

    def to_images(self, images: Tensor) -> Tensor:
        """Return pictures (B, channels, *picture_shape) for the user's tensors (B, C, H, W).

        Raises:
            ShapeError: As `to_model`.
        """
        if self.normalization is not None:
            images = self.normalization.undo(images)
            if self.frame == "view":
                # The model gets all of them, whatever the rounding of their sides.
                self._check_ratio(images, "Images", "those of the fit", self.spec.size)
                check_canonical(images)
                fewer = match_channels(images, self.channels) if self.channels < images.shape[1] else images
                return match_channels(resize(fewer, self.picture_shape, "bicubic"), self.channels)
        return self.from_pictures(images)

    def from_pictures(self, images: Tensor) -> Tensor:
        """Return pictures (B, channels, *picture_shape) for canonical images (B, C, H, W) of any size."""
        if self.frame == "square":
            return fit_canonical(images, self.image_size, self.channels)
        return framed(images, self.spec, self.picture_shape, self.channels)

    def to_square(self, pictures: Tensor) -> Tensor:
        """Return the autoencoder's images (B, C, S, S) for pictures; they themselves where they are square."""
        return resize(pictures, self.image_size, "bicubic")

    def from_square(self, images: Tensor) -> Tensor:
        """Return pictures for the autoencoder's images (B, C, S, S), differentiably."""
        return resize(images, self.picture_shape, "bicubic")

    def images_to_model(self, images: Tensor) -> Tensor:
        """Return model inputs for canonical images (B, C, H, W) of any size, differentiably (but for bytes)."""
        # Decoded and resized pictures may lie in memory with channels last, which a model's `view` cannot take.
        return self._typed(apply_spec(images, self.spec)).contiguous()

    def pictures_to_model(self, pictures: Tensor) -> Tensor:
        """Return model inputs for pictures (B, C, H, W), which show what the model looks at; like `images_to_model`.

        Raises:
            ShapeError: Their sides have another ratio.
        """
        if self.frame == "square":
            return self.images_to_model(pictures)
        check_canonical(pictures)
        if self.spec.size is not None:
            self._check_ratio(pictures, "Pictures", "the fit's", self.picture_shape)
            pictures = resize(pictures, self.spec.size, self.spec.interpolation)
        pictures = normalize(match_channels(pictures, self.spec.channels), self.spec.mean, self.spec.std)
        return self._typed(pictures).contiguous()

    def _check_ratio(self, images: Tensor, what: str, those: str, shape: tuple[int, int] | None) -> None:
        if shape is None or self.frame == "square":
            return
        (height, width), (own_height, own_width) = images.shape[-2:], shape
        # A pixel of rounding is none of small images' fault.
        slack = max(ASPECT, 1 / min(height, width, own_height, own_width))
        if abs(height * own_width / (width * own_height) - 1) > slack:
            raise ShapeError(
                f"{what} are {height} x {width} pixels, and {those} were {own_height} x {own_width}: their sides have "
                "another ratio. Resize, crop or pad them as you did those of the fit."
            )

    def _typed(self, images: Tensor) -> Tensor:
        if self.dtype == "uint8":
            images = images.mul(255).round().clamp(0, 255)
        return images.to(getattr(torch, self.dtype))
