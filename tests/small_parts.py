"""A network, sizes and steps of everything that fit in a second, and a plugin: for tests of whole fits."""

from __future__ import annotations

import torch
from torch import nn

from posthoc_inn import hookimpl
from posthoc_inn.config import ConceptConfig, FitConfig, FlowConfig, ImageSpec, TrainConfig

STEPS = {"batch_size": 32, "eval_every": 4, "checkpoint_every": 4, "patience": 0}
TINY = FitConfig(
    preset="tiny", latent_dim=8, autoencoder_width=8, context_dim=8, conditioner_width=8, conditioner_depth=1,
    flow=FlowConfig(dim=8, context_dim=8, blocks=2, width=8),
    autoencoder_training=TrainConfig(steps=8, **STEPS), flow_training=TrainConfig(steps=8, **STEPS),
    concepts=ConceptConfig(blocks=2, width=8, training=TrainConfig(steps=8, **STEPS)),
)  # fmt: skip
SPEC = ImageSpec(size=(28, 28), mean=(0.5,), std=(0.5,))


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 5, 4), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 10)
        ).eval()


class CouplingPlugin:
    """A plugin that registers one coupling."""

    def __init__(self, name, factory):
        self.name, self.factory = name, factory

    @hookimpl
    def register_flows(self, register):
        register(self.name, self.factory)
