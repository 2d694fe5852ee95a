"""A registered image metric as the distance that an autoencoder is trained by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_inn.errors import ConfigError
from posthoc_inn.training.perceptual import check_trains_by
from posthoc_inn.weights import fingerprint


class MetricDistance:
    """What an image metric says of pictures and their images, averaged over them.

    Args:
        metric: Images and pictures, both (B, C, H, W), to one number a pair, (B,), at least 0; nearer is less. Where it
            is a module it is frozen.
        name: Its registered name.

    Attributes:
        net: The metric where it is a module, an empty one otherwise; no part of any module that is trained or saved.

    >>> distance = MetricDistance(lambda a, b: (a - b).abs().mean((1, 2, 3)), "absolute")
    >>> float(distance(torch.ones(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)))
    1.0
    """

    layers: tuple[str, ...] = ()
    """Those of a metric are its own matter."""

    def __init__(self, metric: Callable[[Tensor, Tensor], Tensor], name: str) -> None:
        self.metric, self.name = metric, name
        self.net = metric.eval().requires_grad_(False) if isinstance(metric, nn.Module) else nn.Identity()

    def __call__(self, pictures: Tensor, images: Tensor) -> Tensor:
        """Return the mean, a scalar, over pictures and their images, both (B, C, H, W) in [0, 1].

        A gradient reaches the pictures; the images are taken as constants.
        """
        return self.metric(images.detach(), pictures).mean()

    def told(self) -> dict[str, Any]:
        """Return what a reader has to know of it: its name, and the fingerprint of its weights."""
        return {"features": self.name, "layers": [], "fingerprint": fingerprint(self.net)}

    def check(self, images: Tensor) -> None:
        """Check with a few images (B, C, H, W) in [0, 1] that it can be trained by.

        Raises:
            ConfigError: It fails on pictures, gives no distance of each, or no finite gradient reaches them.
        """
        check_trains_by(self, images, self.name)
        with torch.no_grad():
            values = self.metric(images, 0.5 * images + 0.25)
        if values.shape != (len(images),):
            raise ConfigError(
                f"The image metric {self.name!r} must return one number a pair, ({len(images)},), to be trained by; "
                f"got {tuple(values.shape)}. Name another as perceptual."
            )
        if bool((values < 0).any()):
            raise ConfigError(
                f"The image metric {self.name!r} gives {float(values.min()):.3g} for two pictures: what is trained by "
                "must be a distance, 0 for the same picture and never below. Name another as perceptual."
            )
