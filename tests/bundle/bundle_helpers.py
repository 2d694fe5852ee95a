"""Small bundles for the tests, and ways to break one while keeping its digests right."""

from __future__ import annotations

import hashlib
import json

import torch
from random_subnets import randomize
from safetensors.torch import load, save
from torch import nn

from posthoc_inn.autoencoders import ConvAutoencoder
from posthoc_inn.bundle import Bundle
from posthoc_inn.concepts import ConceptModel
from posthoc_inn.config import AutoencoderConfig, ConditionerConfig, FlowConfig, ImageSpec
from posthoc_inn.flows import ConditionalFlow, FactorFlow
from posthoc_inn.images import Normalization
from posthoc_inn.images.adapter import InputAdapter
from posthoc_inn.weights import describe_tensors, fingerprint

LATENT = 4
METRICS = {
    "faithfulness": {"agreement": 0.91, "similarity": 0.8, "similarity_between": 0.3},
    "likelihood": {"held_out": 24.5, "standard_normal": 90.8, "noise_floor": 3.0, "verdict": "converged"},
    "explained_by_invariances": {"value": 0.97, "interval": [0.9, 0.99]},
    "autoencoder": {"error": 0.0084, "agreement": 0.92},
}


def make_model(seed=0, width=3):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width * 676, 10)
    ).eval()
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def make_flow(kind="affine", z_shape=(3, 5, 5), seed=1, **options):
    generator = torch.Generator().manual_seed(seed)
    config = FlowConfig(dim=LATENT, context_dim=6, blocks=2, width=8, kind=kind, seed=seed, **options)
    flow = ConditionalFlow(config, ConditionerConfig(z_shape=z_shape, context_dim=6, width=8, seed=seed))
    randomize(flow, weights=0.1, generator=generator)
    z = torch.randn(64, *z_shape, generator=generator)
    flow.conditioner.fit_standardization([z])
    z_bar = torch.randn(64, LATENT, generator=generator)
    if flow.linear is not None:
        flow.fit_linear(lambda: [(z, z_bar, torch.zeros_like(z_bar))], z)
    flow.initialize(z_bar, z)
    return flow.eval()


def make_concepts(seed=4):
    flow = FactorFlow(FlowConfig(dim=LATENT, blocks=2, width=8, seed=seed), (2, 1, 1), aligned=True)
    generator = torch.Generator().manual_seed(seed)
    randomize(flow, weights=0.1, generator=generator)
    flow.align(torch.randn(LATENT, generator=generator), torch.randn(LATENT, LATENT, generator=generator))
    concepts = ConceptModel(flow, ("digit", "color"))
    concepts.set_moments(torch.tensor([0.0, 0.0, 0.7, -0.1]), torch.tensor([1.0, 1.1, 0.6, 1.2]))
    return concepts.eval()


def make_autoencoder(seed=2):
    autoencoder = ConvAutoencoder(AutoencoderConfig(size=28, latent_dim=LATENT, width=2, seed=seed))
    generator = torch.Generator().manual_seed(seed)
    autoencoder.train()
    autoencoder.decode(autoencoder.encode(torch.rand(8, 3, 28, 28, generator=generator))[0])  # running statistics
    return autoencoder.eval()


def make_bundle(model=None, **changes):
    model = make_model() if model is None else model
    parts = {
        "extractor": {
            "layer": "0",
            "output": None,
            "call": None,
            "tokens": "all",
            "prediction": None,
            "prediction_kind": "multilabel",
            "threshold": 0.5,
        },
        "model_fingerprint": fingerprint(model),
        "model_class": type(model).__name__,
        "adapter": InputAdapter(
            ImageSpec(size=(28, 28), mean=(0.5,), std=(0.5,)), Normalization((0.5,), (0.5,), "given"), 28, 3
        ),
        "autoencoder": make_autoencoder(),
        "flow": make_flow(),
        "z_shape": (3, 5, 5),
        "metrics": METRICS,
        "origin": {"backbone": "small_cnn", "dataset": "color-digits"},
        "model_tensors": describe_tensors(model),
        "concepts": make_concepts(),
    }
    return Bundle(**(parts | changes))


def sample(bundle, n=5):
    """Pictures and latents from fixed v and z: what has to be the same after loading."""
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(n, *bundle.z_shape, generator=generator)
    v = torch.randn(n, LATENT, generator=generator)
    with torch.no_grad():
        latents = bundle.flow.inverse(v, bundle.flow.context(z))
        return latents, bundle.autoencoder.decode(latents)


def document(directory):
    return json.loads((directory / "bundle.json").read_text())


def write_document(directory, content):
    (directory / "bundle.json").write_text(content if isinstance(content, str) else json.dumps(content))


def replace_member(directory, name, data):
    """Write other bytes, and state their size and digest, as a forger would."""
    (directory / name).write_bytes(data)
    content = document(directory)
    content["members"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_document(directory, content)


def change_tensors(directory, change):
    tensors = load((directory / "weights.safetensors").read_bytes())
    change(tensors)
    replace_member(directory, "weights.safetensors", save(tensors))
