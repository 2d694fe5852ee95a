"""LPIPS: its values beside a slow rewrite and the published package, its gradient, its weights, and a fit by it."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_parts import SPEC, TINY, network_with_state
from torch import nn

from posthoc_inn import Interpreter
from posthoc_inn.config import AutoencoderConfig
from posthoc_inn.errors import ConfigError, DataError, PluginError, ShapeError, UnknownNameError
from posthoc_inn.plugins import get_plugin_manager
from posthoc_inn.report.fitted import _perceptual_settings
from posthoc_inn.weights import seeded_init
from posthoc_inn.weights.fingerprint import fingerprint

lpips = pytest.importorskip("lpips")
models = pytest.importorskip("torchvision").models
plugin = pytest.importorskip("posthoc_inn_lpips")
metric = pytest.importorskip("posthoc_inn_lpips.metric")


@pytest.fixture
def manager(monkeypatch, tmp_path):
    """The process's manager with the plugin; torch's hub directory is empty, and nothing can be downloaded."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("something was downloaded")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    get_plugin_manager.cache_clear()
    manager = get_plugin_manager()
    if "lpips-alex" not in manager.image_metrics:  # not installed, but on the path
        manager.register(plugin, distribution="posthoc-inn-lpips")
    yield manager
    get_plugin_manager.cache_clear()


@pytest.fixture(scope="module")
def squeezenet():
    with seeded_init(1):
        return models.squeezenet1_1(weights=None).eval()


def random_features(net):
    with torch.device("meta"):  # without the classifier, which is most of AlexNet and VGG
        features = models.get_model(metric.CLASSIFIERS[net], weights=None).features
    features = features.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in features.parameters():
        fan_in = parameter[0].numel()
        parameter.normal_(0, (2 / fan_in) ** 0.5 if parameter.ndim > 1 else 0.1, generator=generator)
    return features


def pairs(n=2, size=40, channels=3):
    return torch.rand(2, n, channels, size, size, generator=torch.Generator().manual_seed(2))


def slowly(features, taps, channels, a, b):
    """Zhang et al., eq. 1, place by place in NumPy; the network's own forward is all that is not rewritten."""
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    total = np.zeros(len(a))
    sides = []
    for images in (a, b):
        scaled = (2 * images.double().numpy() - 1 - shift[:, None, None]) / scale[:, None, None]
        sides.append(torch.from_numpy(scaled))
    for tap, weight in zip(taps, channels, strict=True):
        with torch.no_grad():
            left, right = (features[: tap + 1](side).numpy() for side in sides)
        height, width = left.shape[2:]
        for n, y, x in np.ndindex(len(a), height, width):
            u, w = left[n, :, y, x], right[n, :, y, x]
            u, w = u / np.sqrt((u**2).sum() + 1e-10), w / np.sqrt((w**2).sum() + 1e-10)
            total[n] += sum(weight.double().numpy() * (u - w) ** 2) / (height * width)
    return total


@pytest.mark.parametrize("net", ["alex", "squeeze", "vgg"])
def test_values_are_those_of_a_slow_rewrite(net):
    features, channels = random_features(net).double(), metric.channel_weights(net)
    a, b = pairs(size=plugin.NETWORKS[net][1])
    found = metric.Lpips(features, metric.TAPS[net], channels).double()(a.double(), b.double())
    np.testing.assert_allclose(found.numpy(), slowly(features, metric.TAPS[net], channels, a, b), rtol=1e-6)
    assert bool((found > 0.01).all())


@pytest.mark.parametrize("net", ["alex", "squeeze", "vgg"])
def test_values_are_those_of_the_published_package(net, monkeypatch):
    features = random_features(net)
    named = SimpleNamespace(**{metric.CLASSIFIERS[net]: lambda pretrained: SimpleNamespace(features=features)})
    monkeypatch.setattr(lpips.pretrained_networks, "tv", named)
    theirs = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    a, b = pairs(size=64)
    ours = metric.Lpips(features, metric.TAPS[net], metric.channel_weights(net))
    with torch.no_grad():
        torch.testing.assert_close(ours(a, b), theirs(a, b, normalize=True).flatten(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("net", ["alex", "squeeze", "vgg"])
def test_the_smallest_pictures_are_as_small_as_it_says(net):
    least = plugin.NETWORKS[net][1]
    distance = metric.Lpips(random_features(net), metric.TAPS[net], metric.channel_weights(net))
    assert bool(distance(*pairs(size=least)).isfinite().all())


def test_the_gradient_is_that_of_differences_and_finite_where_all_channels_are_zero():
    with seeded_init():
        layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.ReLU()
        features = nn.Sequential(*layers).double().requires_grad_(False)
    weights = [torch.tensor([0.2, 0.0, 1.0, 0.5]), torch.tensor([1.0, 2.0, 0.1])]
    distance = metric.Lpips(features, [1, 3], weights).double()
    a, b = pairs(size=9).double()
    (gradient,) = torch.autograd.grad(distance(a, b.requires_grad_()).sum(), b)
    step, place = 1e-6, (1, 2, 4, 5)
    ends = []
    for sign in (1, -1):
        moved = b.detach().clone()
        moved[place] += sign * step
        ends.append(float(distance(a, moved).sum()))
    assert float(gradient[place]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-9)
    nn.init.constant_(features[0].bias, -50.0)  # every place of the first ReLU is now 0
    (gradient,) = torch.autograd.grad(distance(a, b).sum(), b)
    assert bool(gradient.isfinite().all())
    dead = torch.zeros(1, 4, 2, 2, requires_grad=True)
    (theirs,) = torch.autograd.grad(lpips.normalize_tensor(dead).sum(), dead)
    assert bool(theirs.isnan().all()), "the package could be used as it is"


def test_grey_pictures_are_three_equal_channels_and_other_shapes_are_refused():
    distance = metric.Lpips(random_features("squeeze"), metric.TAPS["squeeze"], metric.channel_weights("squeeze"))
    a, b = pairs(channels=1)
    torch.testing.assert_close(distance(a, b), distance(a.expand(-1, 3, -1, -1), b.expand(-1, 3, -1, -1)))
    with pytest.raises(ShapeError, match=r"LPIPS compares pictures .* got \(2, 2, 40, 40\)"):
        distance(*pairs(channels=2))


def test_weights_of_channels_of_another_format_are_refused():
    with pytest.raises(PluginError, match=r"lin0\.model\.1\.weight.*each \(1, C, 1, 1\); got lin0 \(4,\)"):
        metric.channel_weights("alex", {"lin0": torch.ones(4)})


@pytest.mark.parametrize("net", ["alex", "squeeze", "vgg"])
def test_missing_weights_are_told_and_nothing_is_downloaded(manager, net):
    with pytest.raises(DataError, match=rf"lpips-{net} needs .*\.pth is not there\. Nothing was downloaded\. Put"):
        manager.build(manager.image_metrics, f"lpips-{net}")


def test_weights_come_from_the_hub_directory_or_from_a_file(manager, tmp_path, squeezenet):
    hub = tmp_path / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    torch.save(squeezenet.state_dict(), hub / "squeezenet1_1-b8a52dc0.pth")
    torch.save(squeezenet.state_dict(), tmp_path / "mine.pth")
    found = manager.build(manager.image_metrics, "lpips-squeeze")
    given = manager.build(manager.image_metrics, "lpips-squeeze", weights=str(tmp_path / "mine.pth"))
    assert fingerprint(found) == fingerprint(given)
    torch.testing.assert_close(found.features[0].weight, squeezenet.features[0].weight)
    assert not any(p.requires_grad for p in found.parameters())
    # Named weights are those of the hub directory too, where they are there.
    assert fingerprint(manager.build(manager.image_metrics, "lpips-squeeze", weights="IMAGENET1K_V1")) == fingerprint(
        found
    )


def test_no_code_of_a_file_runs(manager, tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"features.0.weight": Payload()}, tmp_path / "bad.pth")
    with pytest.raises(DataError, match=r"bad\.pth"):
        manager.build(manager.image_metrics, "lpips-squeeze", weights=str(tmp_path / "bad.pth"))
    assert not (tmp_path / "ran").exists()


def images(n=48):
    return torch.rand(n, 3, 28, 28, generator=torch.Generator().manual_seed(3))


def interpreter(model, **more):
    config = AutoencoderConfig.of_map(28, width=4, latent_channels=2, perceptual="lpips-squeeze", **more)
    return Interpreter(model, "3", spec=SPEC, autoencoder=config, preset=TINY, precision="32")


def test_a_fit_by_it_is_named_in_the_bundle_which_loads_without_it(manager, monkeypatch, tmp_path, squeezenet):
    file = tmp_path / "mine.pth"
    torch.save(squeezenet.state_dict(), file)
    model = network_with_state()
    fitted = interpreter(model, perceptual_weights=str(file)).fit(images())
    found = fitted.metrics_["perceptual"]
    assert (found["features"], found["layers"], found["weight"]) == ("lpips-squeeze", [], 1.0)
    assert all(row["distance"] > 0 for row in fitted.autoencoder_history_.rows)
    assert _perceptual_settings(fitted.metrics_) == {"pictures compared by": "pixels, and lpips-squeeze"}
    fitted.save(tmp_path / "bundle")
    monkeypatch.setenv("POSTHOC_INN_PLUGINS", "")
    get_plugin_manager.cache_clear()
    assert "lpips-squeeze" not in get_plugin_manager().image_metrics
    again = Interpreter.load(tmp_path / "bundle", model=model)
    assert again.autoencoder_.config.perceptual == "lpips-squeeze"
    assert again.autoencoder_.config.perceptual_weights == "mine.pth"
    assert again.metrics_["perceptual"]["fingerprint"] == found["fingerprint"]
    shown = images(2)
    torch.testing.assert_close(again.reconstruct(shown), fitted.reconstruct(shown))


def test_what_cannot_be_trained_or_measured_by_is_refused_before_anything_is_trained(manager, monkeypatch):
    def train(*_args, **_kwargs):
        raise AssertionError("something was trained")

    monkeypatch.setattr("posthoc_inn.fit.stages.train", train)
    model = network_with_state()
    with pytest.raises(DataError, match=r"squeezenet1_1-b8a52dc0\.pth is not there"):
        interpreter(model).fit(images())
    with pytest.raises(ConfigError, match="an image metric has its own layers: leave out perceptual_layers"):
        interpreter(model, perceptual_layers=("features.3",)).fit(images())
    with pytest.raises(DataError, match=r"nowhere\.pth is missing"):
        interpreter(model, perceptual_weights="nowhere.pth").fit(images())
    with pytest.raises(UnknownNameError, match="no weights 'IMAGENET'"):
        interpreter(model, perceptual_weights="IMAGENET").fit(images())
    with pytest.raises(DataError, match=r"squeezenet1_1-b8a52dc0\.pth is not there"):
        Interpreter(model, "3", spec=SPEC, preset=TINY).fit(images(), image_metrics=["lpips-squeeze"])
    small = AutoencoderConfig.of_map(28, width=4, perceptual="lpips-alex")
    with pytest.raises(DataError, match="'lpips-alex' takes pictures of at least 32 x 32 pixels, got 28 x 28"):
        Interpreter(model, "3", spec=SPEC, autoencoder=small, preset=TINY).fit(images())
