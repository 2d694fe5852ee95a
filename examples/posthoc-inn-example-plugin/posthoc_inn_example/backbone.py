"""A network to be explained: any torch.nn.Module will do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from posthoc_inn.weights import load_weights, seeded_init


class StripeNet(nn.Module):
    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU()
        )
        self.head = nn.Linear(32, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.mean(self.features(images), dim=(2, 3)))  # type: ignore[no-any-return]


def build_stripe_net(*, weights: str | None, num_classes: int | None) -> StripeNet:
    # Random weights are drawn from a seed of their own: the user's generator is left alone.
    with seeded_init():
        model = StripeNet(4 if num_classes is None else num_classes)
    if weights is not None:
        # Reads .safetensors and PyTorch's files, never runs code from them, and says what does not fit.
        load_weights(model, weights)
    return model.eval()
