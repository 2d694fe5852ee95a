"""Fits whose codes are maps: chosen by the size of pictures, t and its context with places, kept in a bundle."""

from __future__ import annotations

import pytest
import torch
from small_parts import STEPS, TINY

from posthoc_inn import Interpreter
from posthoc_inn.config import AutoencoderConfig, FlowConfig, ImageSpec
from posthoc_inn.flows.maps import ConvCoupling, TransformerCoupling

MAPS = TINY.replace(
    latent="auto", map_flow=FlowConfig(dim=8, context_dim=8, kind="conv", blocks=2, width=8, depth=1),
    map_autoencoder_training=STEPS.replace(steps=4), map_flow_training=STEPS.replace(steps=6), context_channels=3,
)  # fmt: skip


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [torch.nn.Conv2d(3, 4, 5, 4, 1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
        return torch.nn.Sequential(*layers, torch.nn.Linear(4, 10)).eval()


def pictures(size=32, count=40):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, size, mode="bilinear")


def fitted(layer="1", size=32, **options):
    given = {"spec": ImageSpec(mean=(0.5,), std=(0.5,)), "preset": MAPS, "precision": "32"} | options
    return Interpreter(network(), layer, **given)


@pytest.mark.parametrize(("size", "shape"), [(28, (8,)), (32, (4, 8, 8)), (64, (4, 8, 8))])
def test_from_32_pixels_on_codes_are_maps_where_the_choice_is_left(size, shape):
    fit = fitted().prepare(request_of(size))
    assert fit.parts.autoencoder.latent_shape == shape
    is_map = len(shape) == 3
    config = fit.parts.config
    assert config.flow.kind == ("conv" if is_map else "affine")
    assert (config.flow_training.steps, config.autoencoder_training.steps) == ((6, 4) if is_map else (8, 8))
    assert ("latent 256 (4 x 8 x 8)" in "\n".join(fit.plan().lines)) == is_map


def request_of(size):
    from posthoc_inn.fit import FitRequest

    return FitRequest(data=pictures(size), held_out=pictures(size, 12))


@pytest.mark.parametrize(("layer", "channels"), [("1", 3), ("3", 0)], ids=["z with places", "z without"])
def test_a_fit_over_maps_gives_v_back_and_comes_back_from_its_bundle(tmp_path, layer, channels):
    interpreter = fitted(layer).fit(pictures(), held_out=pictures(count=12), progress=False)
    flow = interpreter.flow_.flow
    assert all(isinstance(c, ConvCoupling) for block in flow.blocks for c in block.couplings)
    assert flow.config.latent_shape == (4, 8, 8)
    assert flow.config.context_channels == channels
    assert flow.config.context_dim == 8 + channels * 64
    images = pictures(count=2)
    z_bar = interpreter.pipeline.encode(images)[0]
    context = interpreter.pipeline.context(interpreter.pipeline.features(images))
    v, _ = interpreter.pipeline.invariances(z_bar, context)
    torch.testing.assert_close(interpreter.pipeline.flow.inverse(v, context), z_bar, atol=1e-4, rtol=1e-4)
    many = torch.randn(2, 3, 256, generator=torch.Generator().manual_seed(1))
    samples = interpreter.sample(images, v=many)
    assert samples.shape == (2, 3, 3, 32, 32)
    interpreter.save(tmp_path / "bundle")
    again = Interpreter.load(tmp_path / "bundle", model=network())
    torch.testing.assert_close(again.sample(images, v=many), samples)


def test_an_autoencoder_of_the_users_whose_codes_are_maps_gets_a_flow_over_maps():
    wanted = AutoencoderConfig.of_map(32, width=8, latent_channels=2)
    usual = MAPS.replace(latent="vector", map_flow=MAPS.map_flow.replace(kind="transformer"))
    interpreter = fitted(preset=usual, autoencoder=wanted).fit(pictures(), held_out=pictures(count=12), progress=False)
    assert isinstance(interpreter.flow_.flow.blocks[0].couplings[0], TransformerCoupling)
    assert interpreter.flow_.flow.config.latent_shape == (2, 8, 8)
    assert interpreter.metrics_["likelihood"]["held_out"] < 1e4


def test_what_is_said_of_maps_takes_the_place_of_what_is_said_of_vectors():
    over = MAPS.of_maps()
    assert (over.flow, over.flow_training) == (MAPS.map_flow, MAPS.map_flow_training)
    assert TINY.of_maps() == TINY
    assert over.of_maps() == over
