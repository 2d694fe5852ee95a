"""The residual autoencoder, whose latent is a map that is handed around flattened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_parts import SPEC, TINY, network
from torch import nn

from posthoc_inn import Interpreter
from posthoc_inn.autoencoders import ConvAutoencoder, GivenAutoencoder, ResidualAutoencoder, latent_shape_of
from posthoc_inn.cli.autoencoders import autoencoder_changes, chosen_autoencoder
from posthoc_inn.config import AutoencoderConfig, TrainConfig, preset
from posthoc_inn.errors import ConfigError, ShapeError
from posthoc_inn.plugins import get_plugin_manager
from posthoc_inn.rows.cache import Cache
from posthoc_inn.testing import check_autoencoder
from posthoc_inn.training import train
from posthoc_inn.training.tasks import AutoencoderTask


def made(size=32, channels=3, **more):
    return ResidualAutoencoder(AutoencoderConfig.of_map(size, channels, **({"width": 8} | more)))


def blobs(n=40, size=32, seed=0):
    """Pictures of a bright square on a ground of another colour, as bytes."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.rand(n, 3, 1, 1, generator=generator).expand(n, 3, size, size).clone()
    for picture in pictures:
        y, x = torch.randint(0, size - 8, (2,), generator=generator).tolist()
        picture[:, y : y + 8, x : x + 8] = torch.rand(3, 1, 1, generator=generator)
    return pictures


@pytest.mark.parametrize(
    ("size", "channels", "reduction", "shape"),
    [(28, 1, 4, (4, 7, 7)), (32, 3, 4, (4, 8, 8)), (96, 3, 8, (4, 12, 12)), (40, 3, 2, (4, 20, 20))],
)
def test_any_size_that_the_reduction_divides_goes_through_and_back(size, channels, reduction, shape):
    autoencoder = made(size, channels, reduction=reduction, width=4)
    images = torch.rand(2, channels, size, size)
    mean, std = autoencoder.encode(images)
    assert autoencoder.latent_shape == shape
    assert mean.shape == std.shape == (2, autoencoder.latent_dim)
    assert (std > 0).all()
    decoded = autoencoder.decode(mean)
    assert decoded.shape == images.shape
    assert decoded.min() >= 0
    assert decoded.max() <= 1


def test_it_does_what_the_framework_asks_of_an_autoencoder():
    assert str(check_autoencoder(made(24, reduction=4))) == "ResidualAutoencoder can serve."
    built = get_plugin_manager().build(get_plugin_manager().autoencoders, "residual", AutoencoderConfig.of_map(32))
    assert isinstance(built, ResidualAutoencoder)


def test_a_shape_that_does_not_fit_the_width_is_told():
    class Other(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.config, self.latent_dim = inner, inner.config, inner.latent_dim
            self.latent_shape = (4, 8, 8)
            self.encode, self.decode = inner.encode, inner.decode

    told = str(check_autoencoder(Other(made(24, reduction=4))))
    assert "latent_shape is (4, 8, 8), which has not the 144 values of a flattened latent" in told


def test_latents_run_over_the_map_as_channel_row_column():
    autoencoder, seen = made(32, latent_channels=3), []
    autoencoder.decoder[0].register_forward_hook(lambda _module, args, _out: seen.append(args[0].clone()))
    z_bar = torch.randn(2, autoencoder.latent_dim)
    autoencoder.decode(z_bar)
    for c, y, x in [(0, 0, 1), (0, 1, 0), (1, 0, 0), (2, 7, 3)]:
        assert torch.equal(seen[0][:, c, y, x], z_bar[:, (c * 8 + y) * 8 + x])
    autoencoder.encoder[-1].register_forward_hook(lambda _module, _args, out: seen.append(out.clone()))
    mean, std = autoencoder.encode(torch.rand(2, 3, 32, 32))
    assert torch.equal(mean.view(2, 3, 8, 8), seen[1][:, :3])
    torch.testing.assert_close(std.view(2, 3, 8, 8), (0.5 * seen[1][:, 3:]).exp())


def test_a_place_of_the_map_is_a_place_of_the_picture():
    autoencoder = made(64, width=4).double()
    z_bar = torch.zeros(1, autoencoder.latent_dim, dtype=torch.float64).requires_grad_()
    y, x = 20, 44  # in the middle of row 2 and column 5 of the map
    autoencoder._decoded(z_bar)[0, :, y, x].sum().backward()
    reach = z_bar.grad.view(4, 8, 8).abs().sum(0)
    assert reach[1:4, 4:7].sum() > 0.5 * reach.sum()
    assert reach[4:7, 1:4].sum() < 0.2 * reach.sum()  # where it would be with rows and columns exchanged


def test_upsampling_is_a_transposed_convolution_in_fewer_passes():
    layer = made(32).decoder[-1].double()
    x = torch.randn(2, layer.in_channels, 5, 7, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(x), nn.functional.conv_transpose2d(x, layer.weight, layer.bias, 2, 1))


def test_it_runs_under_bf16_autocast_with_latents_in_full_precision():
    autoencoder, images = made(), torch.rand(2, 3, 32, 32)
    plain = autoencoder.encode(images)[0]
    with torch.autocast("cpu", torch.bfloat16):
        mean, std = autoencoder.encode(images)
        figures = autoencoder.loss_figures(images, torch.zeros(2, 256))
    assert mean.dtype == std.dtype == figures["loss"].dtype == torch.float32
    torch.testing.assert_close(mean, plain, rtol=0.1, atol=0.05)
    figures["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in autoencoder.parameters())


def test_other_images_of_the_batch_do_not_matter():
    autoencoder, images = made(), torch.rand(3, 3, 32, 32)
    together, alone = autoencoder.encode(images)[0], autoencoder.encode(images[1:2])[0]
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


def test_a_vector_is_said_to_have_the_shape_of_one():
    given = GivenAutoencoder(
        nn.Sequential(nn.Flatten(), nn.Linear(784, 8)),
        nn.Sequential(nn.Linear(8, 784), nn.Unflatten(1, (1, 28, 28))),
        size=28,
        channels=1,
    )
    assert given.latent_shape == latent_shape_of(given) == (8,)
    assert ConvAutoencoder(AutoencoderConfig(latent_dim=6, width=2)).latent_shape == (6,)


def test_a_wrong_width_of_a_map_is_told_with_the_right_one():
    with pytest.raises(ConfigError, match=r"latent_dim of a map of 4 x 8 x 8 is 256, got 64; .*of_map"):
        AutoencoderConfig(kind="residual", size=64, latent="map")
    with pytest.raises(ConfigError, match="must divide the size, 36 pixels, for a map; got 8, accepted are 2, 4"):
        AutoencoderConfig.of_map(36, reduction=8)
    with pytest.raises(ConfigError, match="reduction must be 2, 4, 8, 16 or 32, got 3"):
        AutoencoderConfig.of_map(36, reduction=3)


def test_kinds_refuse_the_other_latent():
    with pytest.raises(ConfigError, match=r"'conv' is a vector, got latent='map'; kind='residual' has a map"):
        ConvAutoencoder(AutoencoderConfig.of_map(32, kind="conv"))
    with pytest.raises(ConfigError, match=r"'residual' is a map, got .*of_map"):
        ResidualAutoencoder(AutoencoderConfig(kind="residual"))
    with pytest.raises(ShapeError, match=r"takes images \(B, 3, 32, 32\)"):
        made().encode(torch.rand(2, 3, 28, 28))


def test_it_learns_colours_and_places():
    cache = Cache()
    cache.append(images=(blobs(200) * 255).to(torch.uint8))
    autoencoder = made(width=8)
    task = AutoencoderTask(autoencoder, cache, cache, batch_size=32, seed=0)
    train(task, TrainConfig(steps=100, batch_size=32, lr=5e-3, eval_every=0, patience=0, weight_decay=0.0, warmup=0.1))
    images = blobs(16, seed=1)
    with torch.no_grad():
        pictures = autoencoder.decode(autoencoder.encode(images)[0])
    error = (pictures - images).square().mean()
    assert error < 0.3 * images.var()


def test_a_fit_with_a_map_runs_whole_and_comes_back_from_its_bundle(tmp_path):
    config = AutoencoderConfig.of_map(16, reduction=4, latent_channels=2, width=4)
    spec = SPEC.replace(size=(28, 28))
    interpreter = Interpreter(network(), "2", spec=spec, autoencoder=config, preset=TINY, precision="32")
    images = blobs(48, size=28)
    interpreter.fit(images)
    assert interpreter.autoencoder_.latent_shape == (2, 4, 4)
    assert interpreter.pipeline_.latent_dim == 32
    assert interpreter.sample(images[:2], n=3).shape == (2, 3, 3, 16, 16)
    interpreter.save(tmp_path / "bundle")
    again = Interpreter.load(tmp_path / "bundle", model=network())
    assert again.autoencoder_.latent_shape == (2, 4, 4)
    assert torch.equal(again.reconstruct(images[:3]), interpreter.reconstruct(images[:3]))
    assert json.loads(Path(tmp_path / "bundle" / "bundle.json").read_text())["autoencoder"]["config"]["latent"] == "map"


def test_options_of_the_command_line_make_the_configuration():
    options = [("latent_channels", "8"), ("reduction", "4"), ("width", "12")]
    config = chosen_autoencoder("residual", options, TINY, 32, 3, 5)
    assert config == AutoencoderConfig.of_map(32, latent_channels=8, reduction=4, width=12, seed=5)
    assert chosen_autoencoder(None, [("min_gamma", "0.1")], TINY, 28, 1, 0) == AutoencoderConfig(
        channels=1, latent_dim=8, width=8, min_gamma=0.1
    )
    with pytest.raises(ConfigError, match=r"conv has no option 'reduction'.*width is a int, got 'x'"):
        autoencoder_changes("conv", [("reduction", "4"), ("width", "x")])
    with pytest.raises(ConfigError, match="for a registered autoencoder that is to be trained; nobody is none"):
        autoencoder_changes("nobody", [("width", "4")])


@pytest.mark.parametrize(("size", "kind", "latent_dim"), [(28, "conv", 64), (64, "residual", 256)])
def test_options_alone_change_the_autoencoder_that_is_trained_without_them(size, kind, latent_dim):
    config = chosen_autoencoder(None, [("perceptual", "model")], preset("default"), size, 3, 0)
    assert (config.kind, config.latent_dim, config.perceptual) == (kind, latent_dim, "model")


def test_options_of_either_code_wait_for_the_size_of_the_images():
    either = [("latent_channels", "8")]
    assert autoencoder_changes(None, either) == {"latent_channels": 8}
    assert chosen_autoencoder(None, either, preset("quick"), 64, 3, 0).latent_shape == (8, 8, 8)
    with pytest.raises(ConfigError, match="the autoencoder conv has no option 'latent_channels'"):
        chosen_autoencoder(None, either, preset("quick"), 28, 3, 0)
    with pytest.raises(ConfigError, match="has no option 'colour'"):
        autoencoder_changes(None, [("colour", "8")])
