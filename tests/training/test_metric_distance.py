"""Registered image metrics as what autoencoders are trained by: found by name, checked, and refused in words."""

import pytest
import torch
from small_parts import SPEC, TINY, network_with_state
from torch import nn

from posthoc_inn import Interpreter, hookimpl
from posthoc_inn.autoencoders import ConvAutoencoder
from posthoc_inn.config import AutoencoderConfig
from posthoc_inn.errors import ConfigError, DataError, PluginError, UnknownNameError
from posthoc_inn.plugins import get_plugin_manager
from posthoc_inn.training.metric_distance import MetricDistance
from posthoc_inn.training.tasks import AutoencoderLoss


class Weighted(nn.Module):
    """A distance with weights, given by name."""

    def __init__(self, weights=None):
        super().__init__()
        if weights == "missing":
            raise DataError("no such weights")
        self.scale = nn.Parameter(torch.tensor(2.0 if weights == "two" else 1.0))

    def forward(self, a, b):
        return self.scale * (a - b).abs().mean((1, 2, 3))


def absolute(a, b):
    return (a - b).abs().mean((1, 2, 3))


METRICS = {
    "weighted": (lambda weights=None: Weighted(weights), {"weights": "one, or two"}),
    "plain": (lambda: absolute, {"min_size": 16}),
    "rounds": (lambda: lambda a, b: (b - (a * 9).round()).sign().mean((1, 2, 3)).abs() + 1, {}),
    "signed": (lambda: lambda a, b: (a - b - 9).mean((1, 2, 3)), {}),
    "scalar": (lambda: lambda a, b: absolute(a, b).mean(), {}),
    "fails": (lambda: lambda a, b: a @ b[:, :, :3], {}),
    "small_cnn": (lambda: absolute, {}),
}


class Mine:
    @hookimpl
    def register_image_metrics(self, register):
        for name, (factory, options) in METRICS.items():
            register(name, factory, **options)


@pytest.fixture(autouse=True)
def _registered():
    get_plugin_manager.cache_clear()
    get_plugin_manager().register(Mine(), distribution="mine")
    yield
    get_plugin_manager.cache_clear()


def images(n=48):
    return torch.rand(n, 3, 28, 28, generator=torch.Generator().manual_seed(3))


def interpreter(perceptual, **more):
    config = AutoencoderConfig.of_map(28, width=4, latent_channels=2, perceptual=perceptual, **more)
    return Interpreter(network_with_state(), "3", spec=SPEC, autoencoder=config, preset=TINY, precision="32")


def test_it_is_the_mean_over_pairs_and_images_are_constants():
    distance = MetricDistance(Weighted("two"), "weighted")
    a, b = torch.rand(2, 5, 3, 8, 8).requires_grad_()
    value = distance(a, b)
    torch.testing.assert_close(value, 2 * (a - b).abs().mean())
    assert torch.autograd.grad(value, [a, b], allow_unused=True)[1] is None
    config = AutoencoderConfig(latent_dim=5, width=4, perceptual_weight=0.5)
    module = AutoencoderLoss(ConvAutoencoder(config), distance).eval()
    some, noise = torch.randint(0, 256, (4, 3, 28, 28), dtype=torch.uint8), torch.randn(4, 5)
    figures = module.figures(some, noise)
    torch.testing.assert_close(figures["distance"], 2 * (figures["pictures"] - some / 255).abs().mean())
    assert all(name.startswith("autoencoder.") for name, _ in module.named_parameters())


@pytest.mark.parametrize(("weights", "scale"), [("", 1.0), ("two", 2.0)])
def test_a_fit_is_trained_by_the_metric_with_the_weights_that_are_named(weights, scale):
    fitted = interpreter("weighted", perceptual_weights=weights).fit(images())
    assert (fitted.metrics_["perceptual"]["features"], fitted.metrics_["perceptual"]["layers"]) == ("weighted", [])
    row = fitted.autoencoder_history_.rows[-1]
    # The mean absolute difference is at most the root of the mean square; images in [-1, 1] differ twice as much.
    assert 0 < row["distance"] <= scale * (row["error"] ** 0.5) / 2 * 1.001
    assert row["distance"] > 0.5 * scale * (row["error"] ** 0.5) / 2


def test_weights_change_the_fingerprint():
    told = [MetricDistance(Weighted(w), "weighted").told()["fingerprint"] for w in ("", "two", "")]
    assert told[0] == told[2] != told[1]


@pytest.mark.parametrize(
    ("name", "more", "error", "told"),
    [
        ("ssim", {}, ConfigError, "higher for nearer pictures, and training needs a distance"),
        ("plain", {"perceptual_weights": "a.pth"}, ConfigError, "it takes no weights: leave out perceptual_weights"),
        ("plain", {"perceptual_layers": ("1",)}, ConfigError, "own layers: leave out perceptual_layers"),
        ("rounds", {}, ConfigError, "rounds as an image metric: it passes no gradient on to the pictures"),
        ("signed", {}, ConfigError, "'signed' gives -9.* must be a distance"),
        ("scalar", {}, ConfigError, r"'scalar' must return one number a pair, \(2,\).*got \(\)"),
        ("fails", {}, ConfigError, r"fails cannot compare pictures \(2, 3, 28, 28\): RuntimeError"),
        ("weighted", {"perceptual_weights": "missing"}, DataError, "no such weights"),
        ("weigthed", {}, UnknownNameError, "no backbone 'weigthed'.* Nor is it an image metric.*mean 'weighted'"),
        ("small_cnn", {}, ConfigError, "an image metric of mine and a backbone of posthoc-inn; leave one out with"),
    ],
)
def test_what_cannot_be_trained_by_is_refused_before_training(name, more, error, told, monkeypatch):
    def train(*_args, **_kwargs):
        raise AssertionError("something was trained")

    monkeypatch.setattr("posthoc_inn.fit.stages.train", train)
    with pytest.raises(error, match=told):
        interpreter(name, **more).fit(images())


def test_pictures_that_are_too_small_are_refused():
    config = AutoencoderConfig.of_map(8, width=4, latent_channels=2, perceptual="plain")
    with pytest.raises(DataError, match="'plain' takes pictures of at least 16 x 16 pixels, got 8 x 8"):
        Interpreter(network_with_state(), "3", spec=SPEC, autoencoder=config, preset=TINY).fit(images())


def test_a_metric_that_cannot_be_built_is_told_before_training_where_it_only_measures(monkeypatch):
    def broken():
        raise RuntimeError("no disk")

    monkeypatch.setitem(METRICS, "broken", (broken, {}))
    get_plugin_manager.cache_clear()
    get_plugin_manager().register(Mine(), distribution="mine")

    def train(*_args, **_kwargs):
        raise AssertionError("something was trained")

    monkeypatch.setattr("posthoc_inn.fit.stages.train", train)
    with pytest.raises(PluginError, match="'broken' of mine cannot be built: RuntimeError: no disk"):
        Interpreter(network_with_state(), "3", spec=SPEC, preset=TINY).fit(images(), image_metrics=["broken"])
