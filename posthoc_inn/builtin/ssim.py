"""Structural similarity of two images (Wang et al., IEEE Transactions on Image Processing 13(4), 2004)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 11
"""Side of the Gaussian window in pixels; images must be at least as large."""
DEVIATION = 1.5
"""Its standard deviation in pixels."""
C1, C2 = 0.01**2, 0.03**2
"""Keep the two quotients stable where an image is dark or flat, for values in [0, 1]."""


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Return the structural similarity (B,) of images a and b, each (B, C, H, W) in [0, 1].

    The paper's index with its window and constants, at every place where the window lies inside the image, averaged
    over places and channels. It is 1 for equal images, and near 0 for unrelated ones.

    >>> image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> ssim(image, image)
    tensor([1., 1.])
    """
    channels = a.shape[1]
    position = torch.arange(WINDOW, dtype=a.dtype, device=a.device) - WINDOW // 2
    line = torch.exp(-0.5 * (position / DEVIATION) ** 2)
    line = line / line.sum()

    def blur(x: Tensor) -> Tensor:
        rows = F.conv2d(x, line.view(1, 1, 1, -1).repeat(channels, 1, 1, 1), groups=channels)
        return F.conv2d(rows, line.view(1, 1, -1, 1).repeat(channels, 1, 1, 1), groups=channels)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    light = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    structure = (2 * covariance + C2) / (var_a + var_b + C2)
    return (light * structure).mean(dim=(1, 2, 3))
