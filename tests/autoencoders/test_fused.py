"""The fused training loss beside what autograd makes of the plain one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from posthoc_inn.autoencoders import ConvAutoencoder
from posthoc_inn.autoencoders.fused import _weight_gradient, upsampled
from posthoc_inn.config import AutoencoderConfig
from posthoc_inn.errors import ShapeError


def fresh(*, dtype=torch.float64, **config):
    """An autoencoder, images and noise, not those of any other call."""
    generator = torch.Generator()
    generator.seed()
    autoencoder = ConvAutoencoder(
        AutoencoderConfig(**({"width": 16, "latent_dim": 5, "seed": generator.initial_seed() % 1000} | config))
    )
    autoencoder.to(dtype)
    shape = (6, autoencoder.config.channels, autoencoder.config.size, autoencoder.config.size)
    images = torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)
    noise = torch.randn(6, autoencoder.latent_dim, generator=generator, dtype=torch.float64).to(dtype)
    return autoencoder, images, noise


def gradients(autoencoder, loss):
    autoencoder.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in autoencoder.named_parameters()}


@pytest.mark.parametrize(("size", "channels"), [(28, 3), (28, 1), (32, 3), (64, 1), (128, 3)])
def test_it_equals_the_plain_loss_and_its_gradient_in_double_precision(size, channels):
    autoencoder, images, noise = fresh(size=size, channels=channels)
    plain, fused = autoencoder.loss_figures(images, noise), autoencoder._fused_figures(images, noise)
    for name in plain:
        torch.testing.assert_close(fused[name].detach(), plain[name].detach(), rtol=1e-9, atol=1e-11)
    wanted, got = gradients(autoencoder, plain["loss"]), gradients(autoencoder, fused["loss"])
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-7, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


def test_a_factor_before_the_loss_reaches_every_gradient():
    autoencoder, images, noise = fresh()
    once = gradients(autoencoder, autoencoder._fused_figures(images, noise)["loss"])
    thrice = gradients(autoencoder, 3 * autoencoder._fused_figures(images, noise)["loss"])
    for name in once:
        torch.testing.assert_close(thrice[name], 3 * once[name])


def test_log_variances_out_of_bounds_and_flat_images_are_treated_alike():
    autoencoder, images, noise = fresh()
    with torch.no_grad():
        autoencoder.encoder[-1].bias[5:] = torch.tensor([-30.0, 30.0, 0.0, -15.0, 5.0])
    images[:3] = 0.25
    wanted = gradients(autoencoder, autoencoder.loss_figures(images, noise)["loss"])
    got = gradients(autoencoder, autoencoder._fused_figures(images, noise)["loss"])
    for name in wanted:
        assert torch.isfinite(got[name]).all()
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-6, atol=1e-10)


def test_the_least_variance_bounds_gamma_alike():
    autoencoder, images, noise = fresh(min_gamma=4.0)
    wanted = gradients(autoencoder, autoencoder.loss_figures(images, noise)["loss"])
    got = gradients(autoencoder, autoencoder._fused_figures(images, noise)["loss"])
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 0.02])
def test_bf16_stays_near_the_plain_double_precision_loss(scale):
    autoencoder, images, noise = fresh(dtype=torch.float32, width=32, latent_dim=64)
    images = 0.5 + scale * (images - 0.5)  # strong and faint contrast
    with torch.autocast("cpu", torch.bfloat16):
        fused = autoencoder._fused_figures(images, noise)
    assert all(part.dtype == torch.float32 for part in fused.values())
    got = gradients(autoencoder, fused["loss"])
    autoencoder.double()
    plain = autoencoder.loss_figures(images.double(), noise.double())
    wanted = gradients(autoencoder, plain["loss"])
    for name in plain:
        torch.testing.assert_close(fused[name].double().detach(), plain[name].detach(), rtol=5e-3, atol=5e-3)
    for name in wanted:
        if name != "decoder.4.bias":  # zero but for rounding: the standardisation takes it away
            similarity = F.cosine_similarity(got[name].double().flatten(), wanted[name].flatten(), dim=0)
            assert similarity > 0.99, name


def test_the_loss_takes_the_fused_way_only_where_it_can(monkeypatch):
    autoencoder, images, noise = fresh(dtype=torch.float32)
    taken = []
    fused = autoencoder._fused_figures
    monkeypatch.setattr(autoencoder, "_fused_figures", lambda *a: taken.append(1) or fused(*a))
    autoencoder.loss(images, noise)
    assert len(taken) == 1
    with torch.no_grad():
        autoencoder.loss(images, noise)
    autoencoder.loss(images.clone().requires_grad_(), noise).backward()  # a gradient that reaches the pixels
    table, images, noise = fresh(dtype=torch.float32, kind="msc")
    table.loss(images, noise).backward()
    assert len(taken) == 1


def test_gamma_is_kept_up_to_date_on_both_ways():
    autoencoder, images, noise = fresh(dtype=torch.float32)
    autoencoder.loss(images, noise)
    fused = autoencoder.log_gamma.clone()
    autoencoder.log_gamma.zero_()
    with torch.no_grad():
        autoencoder.loss(images, noise)
    torch.testing.assert_close(fused, autoencoder.log_gamma, rtol=1e-4, atol=1e-6)
    assert fused != 0


def test_images_of_another_shape_are_refused_in_training_too():
    autoencoder, images, noise = fresh(dtype=torch.float32)
    with pytest.raises(ShapeError, match=r"takes images \(B, 3, 28, 28\)"):
        autoencoder.loss(images[:, :, :14, :14], noise)


@pytest.mark.parametrize(("before", "after", "height", "width"), [(5, 3, 7, 7), (4, 16, 3, 6), (2, 1, 1, 1)])
def test_upsampling_equals_the_transposed_convolution(before, after, height, width):
    generator = torch.Generator()
    generator.seed()
    x = torch.randn(2, before, height, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(before, after, 4, 4, generator=generator, dtype=torch.float64)
    bias = torch.randn(after, generator=generator, dtype=torch.float64)
    for b in (None, bias):
        torch.testing.assert_close(upsampled(x, weight, b), F.conv_transpose2d(x, weight, b, stride=2, padding=1))


@pytest.mark.parametrize(("channels", "after"), [(3, 5), (16, 4)])
def test_the_kernels_gradient_equals_autograds(channels, after):
    generator = torch.Generator()
    generator.seed()
    x = torch.randn(2, channels, 6, 10, generator=generator, dtype=torch.float64)
    weight = torch.randn(after, channels, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(2, after, 3, 5, generator=generator, dtype=torch.float64)
    F.conv2d(x, weight, stride=2, padding=1).backward(gradient)
    x, gradient = (t.contiguous(memory_format=torch.channels_last) for t in (x, gradient))
    torch.testing.assert_close(_weight_gradient(x, gradient, weight.detach()), weight.grad)
