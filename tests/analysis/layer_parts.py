"""Fitted parts for analyses of several layers: one tiny model and autoencoder, and for each layer a t that uses z."""

from __future__ import annotations

import torch
from random_subnets import randomize
from torch import nn

from posthoc_inn.autoencoders import GivenAutoencoder
from posthoc_inn.config import ConditionerConfig, FlowConfig, ImageSpec
from posthoc_inn.features import LayerExtractor
from posthoc_inn.flows import ConditionalFlow
from posthoc_inn.flows.subnet import Subnet
from posthoc_inn.images import Normalization
from posthoc_inn.images.adapter import InputAdapter
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.testing.models import PlainNet

SIDE, DIM = 8, 6
CPU = torch.device("cpu")


def generator(seed):
    return torch.Generator().manual_seed(seed)


def pictures(n, *, seed=0, channels=3, side=SIDE):
    """Images in [0, 1], away from both ends."""
    # Weights are drawn from small seeds too: images of the same stream would look like them.
    return 0.2 + 0.6 * torch.rand(n, channels, side, side, generator=generator(1000 + seed))


def classifier(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = PlainNet()
        with torch.no_grad():
            # Sharper, so that small changes of the image change the class; balanced, so that there are several.
            model.head.weight.mul_(8)
            model.head.bias.sub_(model((pictures(200, seed=8) - 0.5) / 0.5).mean(0))
        return model.train()


def linear_autoencoder(seed=0, reach=0.02):
    """D(z_bar) = 0.5 + W z_bar, small enough never to be clamped."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, DIM))
        decoder = nn.Sequential(nn.Linear(DIM, 3 * SIDE * SIDE), nn.Unflatten(1, (3, SIDE, SIDE)))
        decoder[0].weight.data.normal_(0, reach)
        decoder[0].bias.data.fill_(0.5)
    return GivenAutoencoder(encoder, decoder, size=SIDE).eval()


def pipeline(layer="features.2", *, model=None, autoencoder=None, normalization=None, strength=1.0, **options):
    """Fitted parts; `strength` is how much t makes of z, 0 for nothing."""
    model = classifier() if model is None else model
    autoencoder = linear_autoencoder() if autoencoder is None else autoencoder
    mean, std = (normalization.mean, normalization.std) if normalization else ((0.5,), (0.5,))
    adapter = InputAdapter(ImageSpec(size=(SIDE, SIDE), mean=mean, std=std), normalization, SIDE, 3)
    extractor = LayerExtractor(model, layer, **options)
    images = pictures(300, seed=9)
    given = images if normalization is None else normalization.apply(images)
    with torch.no_grad():
        z, z_bar = extractor.features(adapter.to_model(given)), autoencoder.encode(images)[0]
    flow = ConditionalFlow(
        FlowConfig(dim=DIM, context_dim=8, blocks=2, width=16),
        ConditionerConfig(z_shape=tuple(z.shape[1:]), context_dim=8, width=16),
    )
    for number, net in enumerate(m for m in flow.modules() if isinstance(m, Subnet)):
        randomize(net, scale=strength, generator=generator(number))
    flow.conditioner.fit_standardization([z])
    flow.initialize(z_bar, z)
    return Pipeline(extractor, adapter, autoencoder, flow.eval().requires_grad_(False), CPU)


def two_layers(**options):
    """A mapping of two layers of one model, over one autoencoder."""
    shared = {"model": classifier(), "autoencoder": linear_autoencoder()} | options
    return {"features.0": pipeline("features.0", **shared), "features.2": pipeline("features.2", **shared)}


NORMALIZED = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3), "given")
