"""LPIPS as image metrics for posthoc_inn; only the factories import torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from posthoc_inn.plugins.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

NETWORKS = {"alex": ("AlexNet", 32), "squeeze": ("SqueezeNet 1.1", 28), "vgg": ("VGG-16", 16)}
"""Short name -> the network in words, and the smallest side of a picture in pixels."""
_WEIGHTS = (
    "IMAGENET1K_V1 (downloaded where torch's hub directory lacks it), or a file of the network's weights; without, "
    "torch's hub directory"
)


def _factory(net: str) -> Callable[..., Callable[[Tensor, Tensor], Tensor]]:
    def build(*, weights: str | None = None) -> Callable[[Tensor, Tensor], Tensor]:
        from posthoc_inn_lpips.metric import build_lpips

        return build_lpips(net, weights)

    return build


@hookimpl
def register_image_metrics(register: Register[Callable[[Tensor, Tensor], Tensor]]) -> None:
    """Register LPIPS over each of its three networks."""
    for net, (name, least) in NETWORKS.items():
        register(
            f"lpips-{net}",
            _factory(net),
            min_size=least,
            weights=_WEIGHTS,
            licence="BSD-2-Clause (weights of channels); published weights of networks: see torchvision's notes",
            reference="Zhang et al.: The unreasonable effectiveness of deep features (CVPR 2018), arXiv:1801.03924",
            description=f"LPIPS v0.1 over {name}: 0 for equal pictures",
        )
