"""Classes, finitely many, as codes with a density: a small VAE over their embeddings (MSC B.6, tab. S17)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from posthoc_inn.errors import DataError
from posthoc_inn.weights import seeded_init

SLOPE = 0.01
"""Of the leaky ReLUs (MSC tab. S17)."""
GAMMA = 0.01
"""Output variance, embeddings having variance 1. Not learned: with less no class is told better from another."""
STEPS = 2000
_BATCH = 256


class DequantizedClass(nn.Module):
    """A VAE whose data are the embeddings of all classes: h to a code h' with a density, and back.

    Args:
        dim: Width of an embedding.
        code_dim: Width of its code.
        width: Hidden width.

    >>> embeddings = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    >>> vae = DequantizedClass.fit(embeddings, code_dim=4, width=32, steps=200)
    >>> mean, std = vae.encode(embeddings)
    >>> torch.cdist(vae.decode(mean), embeddings).argmin(1).tolist()
    [0, 1, 2, 3, 4]
    """

    center: Tensor
    spread: Tensor

    def __init__(self, dim: int, code_dim: int = 128, width: int = 256) -> None:
        super().__init__()
        self.dim, self.code_dim = dim, code_dim
        self.encoder, self.decoder = _mlp(dim, width, 2 * code_dim), _mlp(code_dim, width, dim)
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("spread", torch.ones(()))

    @classmethod
    def fit(
        cls, embeddings: Tensor, *, code_dim: int = 128, width: int = 256, steps: int = STEPS, seed: int = 0
    ) -> DequantizedClass:
        """Train one on embeddings (K, dim); the global generator is not used.

        Raises:
            DataError: The embeddings do not differ, or training fails.
        """
        embeddings = embeddings.detach().float().cpu()
        with seeded_init(seed):
            vae = cls(embeddings.shape[1], code_dim, width)
        vae.center.copy_(embeddings.mean(0))
        spread = (embeddings - vae.center).square().mean().sqrt()
        if not float(spread) > 0:
            raise DataError(f"The embeddings of the {len(embeddings)} classes do not differ: there is nothing to code.")
        vae.spread.copy_(spread)
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(vae.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, 1e-5)
        with torch.enable_grad():
            for _ in range(steps):
                rows = torch.randint(len(embeddings), (_BATCH,), generator=generator)
                loss = vae._loss(embeddings[rows], generator)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        if not math.isfinite(float(loss.detach())):
            raise DataError("The codes of classes could not be trained: their embeddings are too large or too small.")
        return vae.eval().requires_grad_(False)

    def _loss(self, h: Tensor, generator: torch.Generator) -> Tensor:
        """Return the negative evidence bound in nats, a constant left out, for embeddings h (B, dim)."""
        mean, std = self.encode(h)
        code = mean + std * torch.randn(mean.shape, generator=generator)
        error = ((self.decode(code) - h) / self.spread).square().sum(1).mean()
        divergence = (0.5 * (mean.square() + std.square() - 1) - std.log()).sum(1).mean()
        return 0.5 * error / GAMMA + divergence

    def encode(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the code, each (B, code_dim), for embeddings (B, dim)."""
        mean, log_std = self.encoder((h - self.center) / self.spread).chunk(2, 1)
        return mean, log_std.clamp(-7, 3).exp()

    def decode(self, code: Tensor) -> Tensor:
        """Return embeddings (B, dim) for codes (B, code_dim)."""
        h: Tensor = self.decoder(code) * self.spread + self.center
        return h


def _mlp(entering: int, width: int, leaving: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(entering, width),
        nn.LeakyReLU(SLOPE),
        nn.Linear(width, width),
        nn.LeakyReLU(SLOPE),
        nn.Linear(width, leaving),
    )
