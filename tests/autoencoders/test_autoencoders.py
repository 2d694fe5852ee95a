"""The built-in autoencoder and the adapter for a user's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from posthoc_inn.autoencoders import SIZES, ConvAutoencoder, GivenAutoencoder, as_autoencoder
from posthoc_inn.config import AutoencoderConfig
from posthoc_inn.errors import ConfigError, DataError, ShapeError
from posthoc_inn.objectives import kl_to_standard_normal


@pytest.mark.parametrize("kind", ["conv", "msc"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_every_size_and_channel_count_goes_through_and_back(kind, channels, size):
    autoencoder = ConvAutoencoder(AutoencoderConfig(kind=kind, size=size, channels=channels, latent_dim=6, width=4))
    images = torch.rand(3, channels, size, size)
    mean, std = autoencoder.encode(images)
    assert mean.shape == std.shape == (3, 6)
    assert (std > 0).all()
    decoded = autoencoder.decode(mean)
    assert decoded.shape == images.shape
    assert decoded.min() >= 0
    assert decoded.max() <= 1


def test_the_paper_kind_has_the_layers_of_the_table():
    autoencoder = ConvAutoencoder(AutoencoderConfig(kind="msc", size=28, latent_dim=64, width=64))
    shapes = [tuple(m.weight.shape) for m in autoencoder.modules() if isinstance(m, nn.Linear)]
    assert shapes == [(128, 7 * 7 * 128), (7 * 7 * 128, 64)]
    convolutions = [tuple(m.weight.shape[:2]) for m in autoencoder.modules() if isinstance(m, nn.Conv2d)]
    assert convolutions == [(64, 3), (128, 64)]
    transposed = [tuple(m.weight.shape[:2]) for m in autoencoder.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert transposed == [(128, 64), (64, 3)]


def test_the_loss_is_the_negative_lower_bound_with_all_constants():
    autoencoder = ConvAutoencoder(AutoencoderConfig(latent_dim=5, width=4, min_gamma=0.0))
    images, noise = torch.rand(7, 3, 28, 28), torch.randn(7, 5)
    figures = autoencoder.loss_figures(images, noise)
    mean, std = autoencoder.encode(images)
    pictures = autoencoder._decoded(mean + std * noise)
    gamma = float((pictures - (images * 2 - 1)).square().mean().detach())
    normal = torch.distributions.Normal(pictures, math.sqrt(gamma))
    nll = -normal.log_prob(images * 2 - 1).flatten(1).sum(1)
    expected = (nll + kl_to_standard_normal(mean, std)).mean() / (3 * 28 * 28)
    torch.testing.assert_close(figures["loss"], expected, rtol=1e-5, atol=1e-5)


def test_errors_below_the_least_variance_are_worth_no_more_than_their_square():
    autoencoder = ConvAutoencoder(AutoencoderConfig(latent_dim=5, width=4, min_gamma=4.0))
    images, noise = torch.rand(4, 3, 28, 28), torch.randn(4, 5)
    figures = autoencoder.loss_figures(images, noise)
    expected = 0.5 * (figures["error"] / 4 + math.log(8 * math.pi)) + figures["kl"] / 2352
    torch.testing.assert_close(figures["loss"], expected)


def test_a_change_of_colour_moves_only_the_statistics_of_a_picture():
    autoencoder = ConvAutoencoder(AutoencoderConfig(latent_dim=5, width=4)).eval()
    z_bar = torch.randn(3, 5)
    with torch.no_grad():
        picture = autoencoder._decoded(z_bar)
        shift, scale = autoencoder.decoder_statistics(z_bar).chunk(2, dim=1)
    torch.testing.assert_close(picture.mean((2, 3)), shift, atol=1e-4, rtol=1e-3)
    spread = picture.flatten(2).std(dim=2, unbiased=False)
    assert (spread <= scale.abs() + 1e-4).all()


def test_initial_weights_come_from_the_seed_and_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    a, b, c = (ConvAutoencoder(AutoencoderConfig(width=4, seed=s)) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a.encoder[0].weight, b.encoder[0].weight)
    assert not torch.equal(a.encoder[0].weight, c.encoder[0].weight)


def test_images_of_another_shape_are_refused():
    with pytest.raises(ShapeError, match=r"takes images \(B, 3, 28, 28\), got \(2, 3, 32, 32\)"):
        ConvAutoencoder(AutoencoderConfig(width=4)).encode(torch.rand(2, 3, 32, 32))


def test_a_size_it_is_not_made_for_is_refused():
    with pytest.raises(ConfigError, match="28, 32, 64, 128 pixels, got 48"):
        ConvAutoencoder(AutoencoderConfig(size=48))


def own(**more):
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 8))
    decoder = nn.Sequential(nn.Linear(8, 784), nn.Unflatten(1, (1, 28, 28)), nn.Tanh())
    return GivenAutoencoder(encoder, decoder, **({"size": 28, "channels": 1} | more))


def test_a_deterministic_encoder_gets_a_positive_density():
    mean, std = own(noise=0.05).encode(torch.rand(2, 1, 28, 28))
    assert (std == 0.05).all()
    assert mean.shape == (2, 8)


def test_ranges_are_converted_on_both_sides():
    class Same(nn.Module):
        def forward(self, x):
            return x.flatten(1)

    class Back(nn.Module):
        def forward(self, z):
            return z.unflatten(1, (1, 28, 28))

    images = torch.rand(2, 1, 28, 28)
    given = GivenAutoencoder(Same(), Back(), size=28, channels=1, image_range="symmetric")
    mean, _ = given.encode(images)
    torch.testing.assert_close(mean, (images * 2 - 1).flatten(1))
    torch.testing.assert_close(given.decode(mean), images)


def test_a_second_output_is_read_as_told():
    class Two(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :8], torch.full((len(x), 8), -2.0)

    decoder = nn.Sequential(nn.Linear(8, 784), nn.Unflatten(1, (1, 28, 28)))
    given = GivenAutoencoder(Two(), decoder, size=28, channels=1, second="log_var")
    torch.testing.assert_close(given.encode(torch.rand(1, 1, 28, 28))[1], torch.full((1, 8), math.exp(-1.0)))


def test_wrong_arguments_are_reported_together():
    with pytest.raises(ConfigError, match=r"channels must be 1 or 3, got 2; image_range .*; noise must be positive"):
        own(channels=2, image_range="byte", noise=0.0)


def test_a_decoder_of_another_size_is_refused():
    with pytest.raises(ShapeError, match=r"must give images \(2, 1, 32, 32\)"):
        GivenAutoencoder(
            nn.Sequential(nn.Flatten(), nn.Linear(1024, 8)),
            nn.Sequential(nn.Linear(8, 784), nn.Unflatten(1, (1, 28, 28))),
            size=32,
            channels=1,
        )


def test_an_encoder_that_returns_something_else_is_refused():
    class Odd(nn.Module):
        def forward(self, x):
            return {"mean": x}

    with pytest.raises(DataError, match="must return a tensor or two, got dict"):
        GivenAutoencoder(Odd(), nn.Identity(), size=28)


def test_what_is_no_autoencoder_is_refused_with_advice():
    with pytest.raises(ConfigError, match=r"Linear lacks encode, decode.*GivenAutoencoder"):
        as_autoencoder(nn.Linear(2, 2))
