"""The perceptual distance: its values and gradient beside a slow rewrite, and a network that is left alone."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
from small_parts import SPEC, TINY, network_with_state
from torch import nn

from posthoc_inn import Interpreter, untouched
from posthoc_inn.autoencoders import ConvAutoencoder, ResidualAutoencoder
from posthoc_inn.config import AutoencoderConfig
from posthoc_inn.errors import ConfigError, LayerNotFoundError, PosthocInnWarning, UnknownNameError
from posthoc_inn.features import LayerExtractor
from posthoc_inn.fit.metric import make_metric
from posthoc_inn.images import InputAdapter
from posthoc_inn.report.fitted import _perceptual_settings
from posthoc_inn.rows.cache import Cache
from posthoc_inn.training.perceptual import FeatureDistance, choose_layers
from posthoc_inn.training.tasks import AutoencoderLoss, AutoencoderTask


def small(dtype=torch.float64, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3, 2), nn.Tanh(), nn.Flatten())
    return net.to(dtype)


def pair(n=3, size=8, dtype=torch.float64):
    return torch.rand(2, n, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def slowly(net, layers, pictures, images):
    """The same distance, number by number in NumPy, from each layer's features."""
    total = 0.0
    for layer in layers:
        with torch.no_grad():
            a, b = (net[: int(layer) + 1](x).numpy() for x in (pictures, images))
        found, count = 0.0, 0
        for n, y, x in np.ndindex(a.shape[0], *a.shape[2:]):
            u, w = a[n, :, y, x], b[n, :, y, x]
            u, w = (v / np.sqrt((v * v).sum() + 1e-10) for v in (u, w))
            found, count = found + ((u - w) ** 2).sum(), count + 1
        total += found / count
    return total / len(layers)


def test_values_and_gradient_are_those_of_a_slow_rewrite():
    net, layers = small(), ["1", "3"]
    distance = FeatureDistance(net, lambda x: 2 * x - 1, layers)
    images, pictures = pair()
    pictures = pictures.requires_grad_()
    value = distance(pictures, images)
    assert float(value.detach()) == pytest.approx(
        slowly(net, layers, 2 * pictures.detach() - 1, 2 * images - 1), rel=1e-9
    )
    (gradient,) = torch.autograd.grad(value, pictures)
    step = 1e-6
    for place in [(0, 0, 3, 3), (1, 2, 5, 1), (2, 1, 7, 7)]:
        ends = []
        for sign in (1, -1):
            moved = pictures.detach().clone()
            moved[place] += sign * step
            ends.append(slowly(net, layers, 2 * moved - 1, 2 * images - 1))
        assert float(gradient[place]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-9)


def test_images_are_constants_and_dead_places_have_a_finite_gradient():
    net = small()
    nn.init.constant_(net[0].bias, -10.0)  # every place of the ReLU is 0
    images, pictures = pair()
    pictures, images = pictures.requires_grad_(), images.requires_grad_()
    value = FeatureDistance(net, lambda x: x, ["1"])(pictures, images)
    value.backward()
    assert images.grad is None
    assert bool(pictures.grad.isfinite().all())


def test_tokens_are_places_too():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(12, 6).double()

        def forward(self, x):
            return self.embed(x.reshape(len(x), 16, 12))

    net, (images, pictures) = Tokens(), pair()
    with torch.no_grad():
        a, b = net(pictures), net(images)
    expected = (nn.functional.normalize(a, dim=2) - nn.functional.normalize(b, dim=2)).square().sum(2).mean()
    value = FeatureDistance(net, lambda x: x, ["embed"])(pictures, images)
    torch.testing.assert_close(value, expected)


def test_the_last_layer_at_each_size_is_chosen_and_early_ones_of_a_network_of_one_size():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.stages = nn.ModuleList(
                nn.Sequential(nn.Conv2d(4, 4, 3, 2 if k else 1, 1), nn.ReLU(inplace=True)) for k in range(4)
            )
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            x = self.stem(x)
            for stage in self.stages:
                x = stage(x)
            return self.head(x.mean((2, 3)))

    assert choose_layers(Two(), torch.rand(2, 3, 32, 32)) == ["stages.0", "stages.1", "stages.2"]
    same = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(8)))
    assert choose_layers(same, torch.rand(2, 3, 16, 16)) == ["0", "2", "3"]
    with pytest.raises(ConfigError, match="No layer of Sequential gives maps of 4 pixels"):
        choose_layers(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), torch.rand(2, 3, 4, 4))


def test_it_is_a_second_likelihood_with_a_variance_of_its_own_so_that_its_unit_does_not_matter():
    autoencoder = ConvAutoencoder(AutoencoderConfig(latent_dim=5, width=4, min_gamma=0.0, perceptual_weight=0.7))
    distance = FeatureDistance(small(torch.float32), lambda x: x, ["1"])
    module = AutoencoderLoss(autoencoder, distance).eval()
    images = torch.randint(0, 256, (4, 3, 28, 28), dtype=torch.uint8)
    noise = torch.randn(4, 5)
    figures = module.figures(images, noise)
    plain = autoencoder.loss_figures(images / 255, noise)
    torch.testing.assert_close(figures["error"], plain["error"])
    said = distance(figures["pictures"], images / 255)
    torch.testing.assert_close(figures["distance"], said)
    error, kl = plain["error"], plain["kl"] / 2352
    expected = 0.5 * (1 + torch.log(2 * torch.pi * error)) + kl + 0.7 * 0.5 * (1 + torch.log(said))
    torch.testing.assert_close(figures["loss"], expected)
    # The gradient is that of the logarithms, and that of KL.
    weights = [p for p in autoencoder.parameters() if p.requires_grad]
    slope = torch.autograd.grad(figures["loss"], weights, allow_unused=True, retain_graph=True)
    wanted = torch.autograd.grad(0.5 * error.log() + kl + 0.35 * said.log(), weights, allow_unused=True)
    for one, other in zip(slope, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    thrice = autoencoder.loss_figures(images / 255, noise, lambda a, b: 3 * distance(a, b))
    other = torch.autograd.grad(thrice["loss"], weights, allow_unused=True)
    for one, scaled in zip(slope, other, strict=True):
        torch.testing.assert_close(one, scaled, rtol=1e-3, atol=1e-6)
    before = autoencoder.log_gamma.clone()
    torch.testing.assert_close(module(images, noise), expected)
    torch.testing.assert_close(autoencoder.log_gamma, before + 0.01 * (error.log() - before))


def test_in_training_a_share_of_the_batch_is_compared():
    config = AutoencoderConfig(latent_dim=5, width=4, perceptual_share=0.3, perceptual_weight=1.0)
    seen = []

    def metric(pictures, images):
        seen.append((pictures, images))
        return (pictures - images).square().mean()

    module = AutoencoderLoss(ConvAutoencoder(config), metric)
    images, noise = torch.randint(0, 256, (8, 3, 28, 28), dtype=torch.uint8), torch.randn(8, 5)
    module(images, noise)
    assert torch.equal(seen[0][1], images[:3] / 255)
    module.eval().figures(images, noise)
    assert len(seen[1][0]) == len(seen[1][1]) == 8


def test_a_thousand_held_out_pictures_are_compared_as_many_at_a_time_as_in_a_step():
    seen = []

    def metric(pictures, images):
        seen.append(len(images))
        return (pictures - images).square().mean()

    cache = Cache()
    some = torch.randint(0, 256, (1250, 3, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    cache.append(images=some)
    config = AutoencoderConfig(latent_dim=2, width=1, perceptual_share=0.3, perceptual_weight=0.7)
    task = AutoencoderTask(ConvAutoencoder(config), cache, cache, batch_size=100, seed=0, metric=metric)
    generator = torch.Generator().manual_seed(0)
    task.module.train()
    with torch.no_grad():
        task.module(*task.batch(0, generator))
    in_a_step = seen.pop()
    task.module.eval()
    with torch.no_grad():
        task.held_out()
        assert (in_a_step, sum(seen), max(seen)) == (30, 1000, 30)
        # The mean over parts, of which the last is smaller, is that over all.
        figures = task.module.figures(some[:100], torch.zeros(100, 2))
    expected = (figures["pictures"] - some[:100] / 255).square().mean()
    torch.testing.assert_close(figures["distance"], expected)


def test_its_network_is_neither_trained_nor_saved_nor_switched_to_training():
    net = network_with_state().train()
    distance = FeatureDistance(net, lambda x: x, ["3"])
    cache = Cache()
    cache.append(images=torch.randint(0, 256, (20, 3, 28, 28), dtype=torch.uint8))
    autoencoder = ResidualAutoencoder(AutoencoderConfig.of_map(28, width=8))
    task = AutoencoderTask(autoencoder, cache, cache, batch_size=4, seed=0, metric=distance)
    kept = copy.deepcopy(distance.net.state_dict())
    task.module.train()
    task.module(*task.batch(0, torch.Generator().manual_seed(0))).backward()
    assert all(name.startswith("autoencoder.") for name, _ in task.module.named_parameters())
    assert not any(m.training for m in distance.net.modules())
    assert all(torch.equal(v, kept[k]) for k, v in distance.net.state_dict().items())
    assert all(p.grad is None for p in distance.net.parameters())
    with torch.no_grad():
        assert task.held_out()["distance"] > 0


def images(n=48):
    return torch.rand(n, 3, 28, 28, generator=torch.Generator().manual_seed(3))


def explained_by_itself(**more):
    config = AutoencoderConfig.of_map(28, width=4, latent_channels=2, perceptual="model", **more)
    model = network_with_state()
    return model, Interpreter(model, "3", spec=SPEC, autoencoder=config, preset=TINY, precision="32")


def test_a_fit_by_the_explained_model_leaves_it_alone_and_records_what_it_was_trained_by(tmp_path):
    model, interpreter = explained_by_itself()
    with untouched(model):
        interpreter.fit(images())
    found = interpreter.metrics_["perceptual"]
    assert found["features"] == "the explained model"
    assert (found["layers"], found["weight"]) == (["2", "4"], 1.0)
    assert all("distance" in row for row in interpreter.autoencoder_history_.rows)
    assert _perceptual_settings(interpreter.metrics_) == {
        "pictures compared by": "pixels, and the explained model at 2, 4"
    }
    assert _perceptual_settings({}) == {}
    interpreter.save(tmp_path / "bundle")
    again = Interpreter.load(tmp_path / "bundle", model=model)
    assert again.metrics_["perceptual"]["fingerprint"] == found["fingerprint"]
    assert again.autoencoder_.config.perceptual == "model"
    assert set(again.autoencoder_.state_dict()) == set(interpreter.autoencoder_.state_dict())


def test_wrong_networks_layers_and_kinds_are_refused_before_anything_is_trained():
    with pytest.raises(LayerNotFoundError, match="the explained model has no layer 'nine' to compare pictures by"):
        explained_by_itself(perceptual_layers=("nine",))[1].fit(images())
    with pytest.raises(ConfigError, match=r"Layer '5' of the explained model gives \(2, 392\), and pictures"):
        explained_by_itself(perceptual_layers=("5",))[1].fit(images())
    config = AutoencoderConfig(latent_dim=8, width=4, perceptual="nobody")
    with pytest.raises(UnknownNameError, match="no backbone 'nobody'"):
        Interpreter(network_with_state(), "3", spec=SPEC, autoencoder=config, preset=TINY).fit(images())
    with pytest.raises(ConfigError, match=r"perceptual='model' is the explained model .*leave out perceptual_weights"):
        AutoencoderConfig(perceptual="model", perceptual_weights="a.pth")


def test_a_network_that_cannot_be_copied_is_told():
    net = small()
    net.lock = threading.Lock()
    with pytest.raises(ConfigError, match=r"Sequential cannot be copied.*registered backbone"):
        FeatureDistance(net, lambda x: x, ["0"])


def test_no_gradient_through_a_network_is_told():
    class Rounds(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv((x * 255).round())

    with pytest.raises(ConfigError, match="it passes no gradient on to the pictures"):
        FeatureDistance(Rounds(), lambda x: x, ["conv"]).check(torch.rand(2, 3, 8, 8))


def test_a_registered_backbone_sees_enlarged_pictures_in_its_own_normalisation():
    config = AutoencoderConfig.of_map(28, width=4, perceptual="small_cnn", perceptual_layers=("stem",))
    extractor, adapter = LayerExtractor(network_with_state(), "3"), InputAdapter(SPEC, None, 28, 3)
    with pytest.warns(PosthocInnWarning, match="small_cnn with random weights"):
        metric = make_metric(config, extractor, adapter, torch.device("cpu"))
    prepared = metric.prepare(torch.full((1, 3, 28, 28), 0.75))
    assert prepared.shape[2:] == (64, 64)
    torch.testing.assert_close(prepared, torch.full_like(prepared, 0.5))
    assert metric.told()["features"] == "small_cnn"
