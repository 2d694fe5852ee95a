"""A small e that does something, and fitted parts around it whose every map can be written down."""

from __future__ import annotations

import torch
from random_subnets import randomize
from torch import nn

from posthoc_inn.autoencoders import Autoencoder
from posthoc_inn.concepts import ConceptModel
from posthoc_inn.config import AutoencoderConfig, ConditionerConfig, FlowConfig, ImageSpec
from posthoc_inn.features import LayerExtractor
from posthoc_inn.flows import ConditionalFlow, FactorFlow
from posthoc_inn.images.adapter import InputAdapter
from posthoc_inn.pipeline import Pipeline

NAMES = ("digit", "color")


def random_rows(n, dim, *, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=g, dtype=torch.float64) / dim**0.5
    return (torch.randn(n, dim, generator=g, dtype=torch.float64) @ mixing + 0.5).to(dtype)


def make_concepts(
    dims=(3, 2, 1), names=NAMES, *, curved=True, space="z_bar", shape=None, dtype=torch.float32, rows=None
):
    """e over D = sum(dims); `curved=False` leaves its couplings the identity, so that it is affine."""
    flow = FactorFlow(FlowConfig(dim=sum(dims), blocks=2, width=16), dims)
    g = torch.Generator().manual_seed(5)
    if curved:
        randomize(flow, generator=g)
    flow = flow.to(dtype)
    flow.initialize(random_rows(500, sum(dims), seed=9, dtype=dtype) if rows is None else rows.to(dtype))
    return ConceptModel(flow.eval().requires_grad_(False), names, space=space, shape=shape)


class LinearAutoencoder(Autoencoder):
    """Latents are D pixels of an image, on a logistic scale; the other pixels are grey."""

    def __init__(self, dim, size):
        super().__init__()
        self.config = AutoencoderConfig(size=size, channels=1, latent_dim=dim)

    def encode(self, images):
        mean = images.flatten(1)[:, : self.latent_dim].clamp(1e-4, 1 - 1e-4).logit()
        return mean, torch.full_like(mean, 0.05)

    def decode(self, z_bar):
        pixels = torch.full((len(z_bar), self.config.size**2), 0.5)
        pixels[:, : self.latent_dim] = z_bar.sigmoid()
        return pixels.reshape(-1, 1, self.config.size, self.config.size)


def make_pipeline(model, layer, *, dim=6, size=8):
    """Fitted parts for a model of grey images of 8 px; t is untrained and takes no part."""
    extractor = LayerExtractor(model.eval(), layer)
    images = torch.rand(4, 1, size, size, generator=torch.Generator().manual_seed(1))
    z = extractor.features(images)
    flow = ConditionalFlow(
        FlowConfig(dim=dim, context_dim=4, blocks=1, width=8),
        ConditionerConfig(z_shape=tuple(z.shape[1:]), context_dim=4, width=8, depth=1 if z.ndim == 2 else 3),
    )
    adapter = InputAdapter(ImageSpec(size=(size, size), channels=1), None, size, 1)
    return Pipeline(extractor, adapter, LinearAutoencoder(dim, size), flow, torch.device("cpu"))


def digit_net(*, seed=0, seen=64, width=6, classes=3):
    """Two linear layers with a curve between them, over the first `seen` pixels."""
    g = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, classes))
    for layer in (net[1], net[3]):
        layer.weight.data.copy_(torch.randn(layer.weight.shape, generator=g))
        layer.bias.data.copy_(torch.randn(layer.bias.shape, generator=g))
    net[1].weight.data[:, seen:] = 0
    return net
