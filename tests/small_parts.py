"""Networks, and sizes and steps of everything, that fit in a second: for tests of whole fits."""

from __future__ import annotations

import torch
from torch import nn

from posthoc_inn import hookimpl
from posthoc_inn.config import ConceptConfig, FitConfig, FlowConfig, ImageSpec, TrainConfig, preset

STEPS = TrainConfig(steps=8, batch_size=32, eval_every=4, checkpoint_every=4, patience=0)
TINY = FitConfig(
    preset="tiny",
    latent_dim=8,
    autoencoder_width=8,
    context_dim=8,
    conditioner_width=8,
    conditioner_depth=1,
    flow=FlowConfig(dim=8, context_dim=8, blocks=2, width=8),
    autoencoder_training=STEPS,
    flow_training=STEPS,
    concepts=ConceptConfig(blocks=2, width=8, training=STEPS),
    linear_fallback=False,  # a t of eight steps is worse, and yet it is the one to be tested
)
SPEC = ImageSpec(size=(28, 28), mean=(0.5,), std=(0.5,))


def tiny_default(latent_dim=4):
    """The default preset, learning rates and all, at a size that takes a second."""
    usual = preset("default")
    steps = {"steps": 8, "batch_size": 16, "eval_every": 4, "checkpoint_every": 4}
    return usual.replace(
        latent_dim=latent_dim,
        autoencoder_width=4,
        context_dim=8,
        conditioner_width=8,
        flow=usual.flow.replace(dim=latent_dim, context_dim=8, blocks=2, width=8),
        autoencoder_training=usual.autoencoder_training.replace(**steps),
        flow_training=usual.flow_training.replace(**steps),
        map_flow=usual.map_flow.replace(blocks=1, width=4),
        map_flow_training=usual.map_flow_training.replace(**steps),
        context_channels=2,
    )


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 5, 4), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 10)
        ).eval()


def network_with_state(channels=3, seed=0):
    """A network in training, with running statistics, an activation in place and dropout."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first = [nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)]
        return nn.Sequential(
            *first, nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(8 * 49, 10)
        )


class CouplingPlugin:
    """A plugin that registers one coupling."""

    def __init__(self, name, factory):
        self.name, self.factory = name, factory

    @hookimpl
    def register_flows(self, register):
        register(self.name, self.factory)
