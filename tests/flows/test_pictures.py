"""A t that starts from the picture in z: what is found there, and that it stays an exact density."""

from __future__ import annotations

import copy

import pytest
import torch
from random_subnets import randomize

from posthoc_inn.autoencoders import ConvAutoencoder
from posthoc_inn.config import AutoencoderConfig, ConditionerConfig, FlowConfig
from posthoc_inn.errors import ConfigError, NotFittedError
from posthoc_inn.flows import ConditionalFlow, FactorFlow
from posthoc_inn.flows.pictures import PictureNet

DIM = 6
Z_SHAPE = (5, 14, 14)


def autoencoder(seed=0):
    return ConvAutoencoder(AutoencoderConfig(size=28, latent_dim=DIM, width=4, seed=seed)).double().eval()


def pairs(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, *Z_SHAPE, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, DIM, generator=generator, dtype=torch.float64)
    return z, noise + z.mean((2, 3))[:, :1] * 5


def fitted(kind="pictures+affine", *, base=None):
    flow = FlowConfig(dim=DIM, context_dim=4, kind=kind, blocks=2, width=8)
    t = ConditionalFlow(flow, ConditionerConfig(Z_SHAPE, 4, 8, picture_shape=(3, 28, 28), picture_width=4), base=base)
    t = randomize(t.double(), weights=0.3)
    generator = torch.Generator().manual_seed(1)
    for parameter in t.pictures.parameters() if t.pictures is not None else ():  # some start at zero
        torch.nn.init.normal_(parameter, std=0.05, generator=generator)
    t.set_encoder(autoencoder())
    z, z_bar = pairs(300)
    t.conditioner.fit_standardization([z])
    t.fit_linear(lambda: [(z, z_bar, torch.full_like(z_bar, 0.1))], z)
    t.initialize(z_bar, z)
    return t


@pytest.mark.parametrize("kind", ["pictures+affine", "pictures+spline"])
@pytest.mark.parametrize("on_e", [False, True])
def test_it_is_a_density_that_inverts(kind, on_e):
    base = None
    if on_e:
        base = randomize(FactorFlow(FlowConfig(dim=DIM, blocks=2, width=8), (4, 2)).double(), weights=0.3)
        base.initialize(pairs(256, seed=1)[1])
    t = fitted(kind, base=base).eval()
    z, z_bar = pairs(3, seed=2)
    context = t.context(z)
    v, log_det = t(z_bar, context)
    for row in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda x, c=context[row]: t(x, c)[0], z_bar[row])
        torch.testing.assert_close(log_det[row], torch.linalg.slogdet(jacobian)[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(t.inverse(v, context), z_bar, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(t.inverse_many(v[:, None], context)[:, 0], z_bar, atol=1e-9, rtol=1e-9)
    shared = t.project(context.unsqueeze(1))
    torch.testing.assert_close(t.inverse(v[:, None], shared)[:, 0], z_bar, atol=1e-9, rtol=1e-9)


def test_what_is_expected_is_linear_in_what_the_encoder_says_of_the_picture():
    t = fitted().eval()
    z, _ = pairs(4, seed=3)
    found = t.pictures(t.conditioner.standardize(z))
    code = t.asked().encode(found)[0]
    expected = code @ t.linear.weight.T + t.linear.mean
    torch.testing.assert_close(t.context(z)[:, -DIM:], expected)
    assert found.shape == (4, 3, 28, 28)


def test_the_encoder_is_no_part_of_it_and_neither_is_trained_with_the_blocks():
    t = fitted().train()
    assert not any("encoder" in name for name in t.state_dict())
    assert not t.pictures.training
    z, z_bar = pairs(8, seed=4)
    v, log_det = t(z_bar, t.context(z))
    (v.square().sum() - log_det.sum()).backward()
    assert all(p.grad is None for p in (*t.pictures.parameters(), *t.asked().parameters()))
    assert all(p.grad is not None for p in t.flow.parameters())


def test_a_gradient_of_samples_reaches_z():
    t = fitted().eval()
    z = pairs(2, seed=5)[0].requires_grad_()
    t.context(z)[:, -DIM:].sum().backward()
    assert bool((z.grad != 0).any())


def test_a_copy_that_was_not_told_its_encoder_says_so():
    t = fitted()
    t.set_encoder(None)
    with pytest.raises(NotFittedError, match="set_encoder"):
        t.context(pairs(2)[0])
    with pytest.raises(ConfigError, match="does not look for pictures"):
        fitted("linear+affine").from_pictures(pairs(2)[0])


def test_the_linear_t_beside_it_is_one_of_z():
    linear = copy.deepcopy(fitted()).linear_part()
    assert linear.pictures is None
    assert linear.linear.weight.shape[1] == 5 * 14 * 14
    assert not linear.linear.is_initialized


@pytest.mark.parametrize(
    ("z_shape", "size"),
    [
        ((7, 28, 28), 28),
        ((7, 13, 13), 28),  # a stride of two without padding
        ((7, 55, 55), 64),
        ((7, 112, 112), 32),
        ((7, 9, 20), 32),
        ((50, 7), 28),  # a class token and 7 x 7 others
        ((16, 7), 32),
    ],
)
def test_pictures_of_any_size_are_found_in_places_of_any_number(z_shape, size):
    net = PictureNet(ConditionerConfig(z_shape, picture_shape=(3, size, size), picture_width=4))
    assert net(torch.randn(2, *z_shape)).shape == (2, 3, size, size)


def test_what_is_at_a_place_of_z_is_seen_at_that_place_of_the_picture():
    # As after a convolution of size 3 and stride 2 without padding: place i looks at pixels 2 i to 2 i + 2.
    net = PictureNet(ConditionerConfig((3, 13, 13), picture_shape=(1, 28, 28), picture_width=4))
    z = torch.zeros(1, 3, 13, 13)
    changed = z.clone()
    changed[..., 4, 9] = 1.0
    # At every place alike, in the two by two pixels that are its own.
    torch.nn.init.ones_(net.linear.weight[:, :, 1:2, 1:2])
    apart = (net(changed) - net(z)).detach().abs()[0, 0]
    rows, columns = (apart.sum(d).double() / apart.sum() @ torch.arange(28.0).double() for d in (1, 0))
    assert abs(float(rows) - 9) < 1.5
    assert abs(float(columns) - 19) < 1.5


def test_its_linear_part_is_ridge_regression_at_each_place():
    net = PictureNet(ConditionerConfig((12, 7, 7), picture_shape=(3, 14, 14), picture_width=4)).double()
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(40, 3, 14, 14, generator=generator, dtype=torch.float64)
    # z is an invertible linear map of the four pixels at its place: all of the picture is there.
    mixing = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    z = torch.einsum("ij,bjhw->bihw", mixing, torch.nn.functional.pixel_unshuffle(pictures, 2))
    net.fit_linear([(z[:20], pictures[:20]), (z[20:30], pictures[20:30])])
    torch.testing.assert_close(net(z[30:]), pictures[30:], atol=1e-2, rtol=0)


def test_there_must_be_places():
    with pytest.raises(ConfigError, match="places"):
        ConditionerConfig((128,), picture_shape=(3, 28, 28))
    with pytest.raises(ConfigError, match="picture_shape"):
        PictureNet(ConditionerConfig((4, 7, 7)))
