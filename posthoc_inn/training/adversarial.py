"""The patch discriminator of MSC tab. S6, and how its share in the autoencoder's loss is balanced."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from posthoc_inn.generators import lent_generators

SLOPE = 0.2
"""Of the leaky ReLUs, below zero (tab. S6)."""
SIDE = 8
"""Of the map of scores, in pixels, at the table's 128 px."""
MOST_HALVINGS = 4
"""Those of the table."""
FLOOR = 1e-6
"""δ of Esser et al. 2021, eq. 7: added to the norm that is divided by."""
MOST = 1e4
"""Upper bound of the adaptive weight, as in the published code of that paper."""


class PatchDiscriminator(nn.Module):
    """Tells, patch by patch, whether a picture is an image or a reconstruction (MSC tab. S6).

    4 × 4 convolutions; halvings until the map has 8 pixels, as the table's at 128 px: four there, two at 32. Batch norm
    by the batch alone, without running statistics, so that a pass for the autoencoder's sake changes nothing.

    Args:
        size: Side of the pictures in pixels.
        channels: Their channels.
        width: Channels after the first halving; 64 in the table.
        seed: Of the initial weights.

    >>> PatchDiscriminator(128)(torch.rand(2, 3, 128, 128)).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(self, size: int, channels: int = 3, width: int = 64, seed: int = 0) -> None:
        super().__init__()
        halvings = min(MOST_HALVINGS, max(1, round(math.log2(size / SIDE))))
        widths = [width * 2**k for k in range(halvings)]
        with lent_generators(seed):
            layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(SLOPE)]
            for before, after in itertools.pairwise(widths):
                layers += [nn.Conv2d(before, after, 4, 2, 1), *_normalised(after)]
            last = widths[-1]
            # The table's last two keep the side, which 4 × 4 kernels do with one zero more behind than in front.
            layers += [nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(last, last, 4), *_normalised(last)]
            self.layers = nn.Sequential(*layers, nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(last, 1, 4))
        self.to(memory_format=torch.channels_last)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return scores (B, 1, h, w), high for images, for pictures (B, C, H, W) in [0, 1]."""
        scores: Tensor = self.layers((pictures * 2 - 1).contiguous(memory_format=torch.channels_last))
        return scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores

    def frozen(self, pictures: Tensor) -> Tensor:
        """Return the same with its parameters as constants: gradients reach the pictures alone."""
        constants = {name: parameter.detach() for name, parameter in self.named_parameters()}
        scores: Tensor = functional_call(self, constants, (pictures,))
        return scores


def _normalised(width: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(width, track_running_stats=False), nn.LeakyReLU(SLOPE)]


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's hinge loss, a scalar, for scores of images and of reconstructions.

    >>> float(hinge(torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])))
    0.375
    """
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(own: Tensor, adversarial: Tensor, at: Tensor) -> Tensor:
    """Return the ratio of two losses' gradient norms at a parameter, without a gradient of its own.

    Weighted by it, the adversarial loss moves the decoder's last layer as much as the other one does (Esser et al.
    2021, "Taming transformers", eq. 7).

    Args:
        own: The loss without the discriminator, a scalar.
        adversarial: What the discriminator adds, a scalar.
        at: Weight of the decoder's last layer.
    """
    norms = [torch.autograd.grad(loss, at, retain_graph=True)[0].float().norm() for loss in (own, adversarial)]
    weight: Tensor = (norms[0] / (norms[1] + FLOOR)).clamp(0, MOST).detach()
    return weight
