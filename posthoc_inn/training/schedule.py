"""The learning-rate schedule: linear warm-up, then a cosine down to a share of the peak."""

from __future__ import annotations

import math

from posthoc_inn.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of `step` (counted from 0).

    >>> config = TrainConfig(steps=100, lr=1.0, warmup=0.1, final_lr=0.01)
    >>> [round(learning_rate(config, k), 2) for k in (0, 9, 55, 99)]
    [0.1, 1.0, 0.5, 0.01]
    """
    warm = round(config.warmup * config.steps)
    if step < warm:
        return config.lr * (step + 1) / warm
    share = (step - warm) / max(1, config.steps - 1 - warm)
    return config.lr * (config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))
