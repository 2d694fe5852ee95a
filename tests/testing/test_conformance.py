"""What plugin authors are told of their autoencoders and generators: a good one, and each kind of bad one."""

import numpy as np
import pytest
import torch
from torch import nn

from posthoc_inn.autoencoders import ConvAutoencoder, GivenAutoencoder
from posthoc_inn.config import AutoencoderConfig
from posthoc_inn.errors import ConfigError
from posthoc_inn.testing import check_autoencoder, check_generator

SIDE, WIDTH = 8, 6
GLOBAL = np.random.default_rng(0)


class Good(nn.Module):
    """A linear autoencoder on 4x4 pixels; each bad one below breaks one promise."""

    def __init__(self):
        super().__init__()
        self.config = AutoencoderConfig(kind="own", size=SIDE, channels=3, latent_dim=48)
        self.latent_dim = 48
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("seen", torch.zeros(()))
        self.pool = nn.AdaptiveAvgPool2d(4)

    def encode(self, images):
        mean = (self.pool(images).flatten(1) - 0.5) * self.scale
        return mean, torch.full_like(mean, 0.1)

    def decode(self, z_bar):
        images = (z_bar / self.scale + 0.5).view(-1, 3, 4, 4)
        return nn.functional.interpolate(images, size=SIDE).clamp(0, 1)


def changed(name, change):
    """Return a good autoencoder with one method changed: `change(own, result, argument)`."""

    class Bad(Good):
        pass

    def method(self, argument):
        return change(self, getattr(Good, name)(self, argument), argument)

    setattr(Bad, name, method)
    return Bad()


def without(name):
    bad = Good()
    if name == "config":
        del bad.config
        return bad
    decoder = nn.Module()
    decoder.config, decoder.latent_dim, decoder.decode = bad.config, bad.latent_dim, bad.decode
    return decoder


def having(name, value):
    bad = Good()
    setattr(bad, name, value)
    return bad


def counted(own, out, _):
    own.seen += 1
    return out


def overwritten(_, out, argument):
    argument.add_(1)
    return out


def raising(*_):
    raise ZeroDivisionError("too\nbad")


def with_mean(change):
    return lambda own, out, images: (change(out[0]), out[1])


def with_std(change):
    return lambda own, out, images: (out[0], change(out[1]))


BAD = {
    "no encode": (without("encode"), "it has no encode"),
    "no config": (without("config"), "it has no config"),
    "a config of another type": (having("config", {}), "config is a dict, not an AutoencoderConfig"),
    "another latent_dim": (having("latent_dim", 7), "latent_dim is 7, that of config 48"),
    "encode raises": (changed("encode", raising), "raises ZeroDivisionError: too bad"),
    "encode gives nothing": (changed("encode", lambda own, out, x: None), "encode gives a NoneType: needed are two"),
    "decode gives nothing": (changed("decode", lambda own, out, x: None), "decode gives a NoneType"),
    "encode gives one tensor": (changed("encode", lambda own, out, x: out[0]), "gives a Tensor: needed are two"),
    "mean of another shape": (changed("encode", with_mean(lambda m: m[..., None])), "must have shape (3, 48), got"),
    "mean of another type": (changed("encode", with_mean(lambda m: m.double())), "mean must be float32, got torch.f"),
    "mean not finite": (changed("encode", with_mean(lambda m: m / 0)), "encode's mean must be finite"),
    "one mean for all": (changed("encode", with_mean(lambda m: m * 0)), "the same mean for different images"),
    "std of zero": (changed("encode", with_std(lambda s: s * 0)), "deviation goes down to 0: it must be positive"),
    "std is a log variance": (changed("encode", with_std(lambda s: s.log())), "must be positive"),
    "std of another shape": (changed("encode", with_std(lambda s: s[:, :1])), "standard deviation must have shape"),
    "noisy mean": (
        changed("encode", with_mean(lambda m: m + torch.as_tensor(GLOBAL.normal(size=m.shape)).float())),
        "another mean for the same images the second time",
    ),
    "draws globally": (changed("encode", with_mean(lambda m: m + torch.rand(()))), "the global random generator"),
    "rows of encode depend": (changed("encode", with_mean(lambda m: m - m.mean(0))), "its rows must not depend"),
    "encode writes into images": (changed("encode", overwritten), "encode writes into the images"),
    "counts in a buffer": (changed("encode", counted), "changes its own seen when it is used in eval mode"),
    "decode raises": (changed("decode", raising), "decode of latents (6, 48) raises ZeroDivisionError"),
    "decode gives an array": (changed("decode", lambda own, x, z: x.detach().numpy()), "decode gives a ndarray"),
    "images of another size": (changed("decode", lambda own, x, z: x[..., 1:]), "images must have shape (6, 3, 8, 8)"),
    "images of another type": (changed("decode", lambda own, x, z: x.half()), "images must be float32"),
    "images not finite": (changed("decode", lambda own, x, z: x / 0), "decode's images must be finite"),
    "images in [-1, 1]": (changed("decode", lambda own, x, z: x * 2 - 1), "they must lie in [0, 1]"),
    "images of bytes": (changed("decode", lambda own, x, z: x * 255), "they must lie in [0, 1]"),
    "one image for all": (changed("decode", lambda own, x, z: x * 0 + 0.5), "the same image for different latents"),
    "noisy images": (
        changed("decode", lambda own, x, z: (x + float(GLOBAL.uniform()) / 9).clamp(0, 1)),
        "other images for the same latents",
    ),
    "rows of decode depend": (
        changed("decode", lambda own, x, z: (x + x.mean(0)) / 2),
        "decode gives another image for a la",
    ),
    "no gradient": (changed("decode", lambda own, x, z: x.detach()), "no finite gradient reaches the latents"),
}


@pytest.mark.parametrize("name", BAD)
def test_each_kind_of_bad_autoencoder_is_told(name):
    autoencoder, told = BAD[name]
    found = check_autoencoder(autoencoder)
    assert not found.is_good
    assert told in str(found)
    with pytest.raises(ConfigError):
        found.raise_if_any()
    if name not in ("no encode", "no config"):
        # One fault is told as one thing, or as what follows from it; not as a flood.
        assert len(found.missing) <= 3, str(found)


def own_pair():
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.Dropout())
    decoder = nn.Sequential(nn.Linear(5, 192), nn.Tanh(), nn.Unflatten(1, (3, SIDE, SIDE)))
    return GivenAutoencoder(encoder, decoder, size=SIDE, image_range="symmetric")


@pytest.mark.parametrize(
    "build",
    [Good, own_pair, lambda: ConvAutoencoder(AutoencoderConfig(size=28, latent_dim=8, width=8))],
    ids=["by names alone", "given", "to be trained"],
)
def test_good_ones_lack_nothing_and_are_left_as_they_are(build):
    autoencoder = build().train()
    before, drawn = {k: v.clone() for k, v in autoencoder.state_dict().items()}, torch.get_rng_state()
    found = check_autoencoder(autoencoder)
    assert (found.missing, str(found)) == ((), f"{type(autoencoder).__name__} can serve.")
    found.raise_if_any()
    assert all(torch.equal(value, before[name]) for name, value in autoencoder.state_dict().items())
    assert all(module.training for module in autoencoder.modules())
    assert all(p.grad is None for p in autoencoder.parameters())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_all_problems_are_told_at_once():
    bad = changed("encode", with_std(lambda s: -s))
    bad.decode = lambda z: Good.decode(bad, z) * 300
    found = check_autoencoder(bad)
    assert len(found.missing) == 2
    assert str(found).startswith("Bad lacks 2 things:\n- encode's standard")


def test_reconstructions_are_judged_on_images_of_the_users():
    images = torch.rand(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    assert check_autoencoder(Good(), images).is_good
    mixed = changed("encode", with_mean(lambda m: m.flip(1)))
    assert check_autoencoder(mixed).is_good
    assert "reconstructions decode(encode(x)) are nearest" in str(check_autoencoder(mixed, images))
    with pytest.raises(ConfigError, match="two or more images"):
        check_autoencoder(Good(), images[:1])


def test_gradients_are_asked_for_where_they_are_claimed():
    bad = changed("decode", lambda own, x, z: x.detach())
    assert check_autoencoder(bad, gradients=False).is_good
    bad.is_differentiable = False
    assert check_autoencoder(bad).is_good
    assert not check_autoencoder(bad, gradients=True).is_good


def test_one_without_an_encoder_is_asked_for_its_decoder_alone():
    bad = changed("encode", raising)
    bad.has_encoder = False
    assert check_autoencoder(bad).is_good


@pytest.mark.parametrize(
    ("figures", "told"),
    [
        (None, "it has loss, but no loss_figures"),
        (lambda *_: torch.ones(()), 'a dict with at least "loss" and "error"'),
        (
            lambda *_: {"loss": torch.ones(3).requires_grad_(), "error": torch.ones(())},
            '"loss" must be a finite scalar',
        ),
        (lambda *_: {"loss": torch.ones(()), "error": torch.ones(())}, "the loss has no gradient"),
        (raising, "loss_figures(images, noise) raises ZeroDivisionError"),
    ],
)
def test_what_a_fit_needs_of_one_that_it_trains_is_checked(figures, told):
    bad = Good()
    bad.loss = lambda images, noise: torch.ones(())
    if figures is not None:
        bad.loss_figures = figures
    assert told in str(check_autoencoder(bad))


def test_a_stranger_is_told_what_an_autoencoder_is():
    assert "must be a torch.nn.Module" in str(check_autoencoder(object()))


# ---- generators

WEIGHTS = torch.randn(WIDTH, 192, generator=torch.Generator().manual_seed(0)) / 4


def good(latents):
    return (latents @ WEIGHTS).sigmoid().view(-1, 3, SIDE, SIDE)


def as_bytes(latents):
    return (good(latents) * 255).to(torch.uint8)


def one_at_a_time(latents):
    if len(latents) != 1:
        raise ValueError("a fixed batch")
    return good(latents).numpy()


def prior(n, generator):
    return torch.randn(n, WIDTH, generator=generator)


@pytest.mark.parametrize(
    ("decode", "options"),
    [
        (good, {"gradients": True, "size": SIDE}),
        (as_bytes, {}),
        (lambda w: good(w).numpy().astype(np.float64), {"prior": prior}),
        (one_at_a_time, {"together": 1}),
        (lambda w: good(w) * 2 - 1, {"image_range": "symmetric", "prior": prior(5, None)}),
        (lambda w: good(w)[:, :1, :, :5], {"channels": 1}),
        (nn.Sequential(nn.Linear(WIDTH, 192), nn.BatchNorm1d(192), nn.Sigmoid(), nn.Unflatten(1, (3, 8, 8))), {}),
    ],
)
def test_good_generators_lack_nothing(decode, options):
    found = check_generator(decode, WIDTH, **options)
    assert found.missing == ()


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, latents):
        self.calls += 1
        return good(latents)


def writing(latents):
    latents.add_(1)
    return good(latents - 1)


BAD_GENERATORS = {
    "not callable": (3, {}, "it cannot be called"),
    "raises": (raising, {}, "raises ZeroDivisionError: too bad"),
    "nothing": (lambda w: None, {}, "it gives a NoneType, neither"),
    "a list": (lambda w: [good(w)], {}, "neither a tensor nor an array"),
    "channels last": (lambda w: good(w).permute(0, 2, 3, 1), {}, "it gives (3, 8, 8, 3) for latents (3, 6)"),
    "flat": (lambda w: good(w).flatten(1), {}, "it gives (3, 192) for latents"),
    "other channels": (good, {"channels": 1}, "needed are images (3, 1, H, W)"),
    "another size": (good, {"size": 16}, "its images have 8x8 px, not 16"),
    "whole numbers": (lambda w: (good(w) * 255).long(), {}, "its images are torch.int64"),
    "not finite": (lambda w: good(w) / 0, {}, "not finite"),
    "another range": (lambda w: good(w) * 2 - 1, {}, "needed is [0, 1]"),
    "bytes as numbers": (lambda w: good(w) * 255, {}, "needed is [0, 1]"),
    "half of the range": (good, {"image_range": "symmetric"}, "is image_range='unit' meant?"),
    "one image for all": (lambda w: good(w * 0), {}, "the same image for different latents"),
    "draws": (lambda w: good(w + torch.randn(())), {}, "the global random generator"),
    "draws by NumPy": (lambda w: good(w + float(GLOBAL.normal())), {}, "other images for the same latents"),
    "rows depend": (lambda w: good(w - w.mean(0)), {}, "rows must not depend on each other"),
    "a fixed batch": (one_at_a_time, {}, "raises ValueError: a fixed batch"),
    "writes into latents": (writing, {}, "it writes into the latents"),
    "counts": (Counting(), {}, "changes its own calls"),
    "no gradient": (lambda w: good(w).detach(), {"gradients": True}, "no finite gradient"),
    "another prior": (good, {"prior": lambda n, generator: torch.ones(n, 3)}, "the prior gives (3, 3)"),
    "a prior of its own": (good, {"prior": lambda n, generator: torch.randn(n, WIDTH)}, "from another generator than"),
    "a prior that raises": (good, {"prior": raising}, "the prior raises ZeroDivisionError"),
    "a prior of lists": (good, {"prior": lambda n, generator: [0.0]}, "the prior gives a list"),
    "a prior not finite": (good, {"prior": lambda n, generator: torch.ones(n, WIDTH) / 0}, "must be finite numbers"),
    "too few latents": (good, {"prior": torch.ones(2, WIDTH)}, "the prior gives (2, 6)"),
}


@pytest.mark.parametrize("name", BAD_GENERATORS)
def test_each_kind_of_bad_generator_is_told(name):
    decode, options, told = BAD_GENERATORS[name]
    found = check_generator(decode, WIDTH, **options)
    assert told in str(found)
    assert len(found.missing) <= 3, str(found)


@pytest.mark.parametrize("options", [{"image_range": "bytes"}, {"prior": "uniform"}])
def test_wrong_arguments_are_errors(options):
    with pytest.raises(ConfigError, match="got '"):
        check_generator(good, WIDTH, **options)
