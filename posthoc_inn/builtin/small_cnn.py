"""A small convolutional classifier for images of 28 to 64 px, with the layers worth looking at named."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from posthoc_inn.weights import infer_num_classes, load_into, load_state, seeded_init

DEFAULT_CLASSES = 10


class SmallCNN(nn.Module):
    """Three stages of two 3x3 convolutions with batch norm, each halving the map; mean; linear head.

    Takes images (B, 3, H, W) of 8 px and more; sound for 28 to 64 px. About 0.3 million parameters at width
    32.

    Args:
        num_classes: Outputs.
        width: Channels of the stem; each stage doubles them.

    >>> model = SmallCNN(num_classes=10).eval()
    >>> model(torch.zeros(2, 3, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = DEFAULT_CLASSES, width: int = 32) -> None:
        super().__init__()
        self.stem = _convolution(3, width)
        self.stage1 = _stage(width, width)
        self.stage2 = _stage(width, 2 * width)
        self.stage3 = _stage(2 * width, 4 * width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, num_classes) for images (B, 3, H, W)."""
        maps = self.stage3(self.stage2(self.stage1(self.stem(images))))
        return self.head(torch.flatten(self.pool(maps), 1))  # type: ignore[no-any-return]


def small_cnn(*, weights: str | None = None, num_classes: int | None = None) -> SmallCNN:
    """Build a `SmallCNN` in eval mode.

    Args:
        weights: None for random ones, the same at every call; else a local file.
        num_classes: Outputs; None for what the file has, or 10.

    Raises:
        DataError: The file cannot be read or does not fit.
    """
    state = None if weights is None else load_state(weights)
    if num_classes is None and state is not None:
        num_classes = infer_num_classes(SmallCNN, state)
    with seeded_init():
        model = SmallCNN(DEFAULT_CLASSES if num_classes is None else num_classes)
    if state is not None:
        load_into(model, state, source=str(weights))
    return model.eval()


def _convolution(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


def _stage(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(_convolution(channels_in, channels_out), _convolution(channels_out, channels_out, stride=2))
