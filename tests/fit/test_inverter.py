"""Encoders of generators: trained on draws, or found step by step, and how good they are."""

import numpy as np
import pytest
import torch
from small_parts import TINY
from torch import nn

from posthoc_inn import (
    ConfigError,
    GivenGenerator,
    Interpreter,
    Inverter,
    NotFittedError,
    inversion_quality,
    invert_by_optimization,
)

D = 5
BASIS = np.linalg.qr(np.random.default_rng(1).normal(size=(64, D)))[0].T


class Linear:
    def __init__(self, fails_after=10**9):
        self.made, self.fails_after = 0, fails_after

    def __call__(self, w):
        if self.made + len(w) > self.fails_after:
            raise KeyboardInterrupt
        self.made += len(w)
        return (w.numpy() @ BASIS * 0.25 + 0.5).reshape(-1, 1, 8, 8)


def generator_of(decode=None):
    return GivenGenerator(decode or Linear(), D, channels=1)


def small(**options):
    return Inverter(**{"width": 4, "steps": 20, "batch_size": 32, **options})


def test_the_latent_of_a_linear_generator_is_recovered():
    generator = generator_of()
    inverter = small().fit(generator, generator.draws(400))
    assert inverter.quality_.explained > 0.95
    assert inverter.quality_.pixel_error < 0.1 * inverter.quality_.pixel_error_between
    fresh = generator_of()
    w = torch.randn(20, D, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        mean, std = inverter.encode(fresh.decode(w))
    assert float((mean - w).square().mean()) < 0.05
    assert bool((std > 0).all())
    assert float(std.mean()) < 0.3


def test_with_an_inverter_photographs_have_invariances():
    generator = generator_of()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Linear(3, 2))
    fitted = Interpreter(model, "1", autoencoder=generator, preset=TINY, prediction_kind="embedding")
    fitted.fit(200, evaluate=False)
    photographs = generator_of().draws(6, seed=8).images(range(6))
    with pytest.raises(ConfigError, match="Inverter"):
        fitted.invariances(photographs)
    with pytest.raises(ConfigError, match="no inverter to measure"):
        inversion_quality(fitted, photographs)
    assert generator.with_inverter(small().fit(generator, 200)) is generator
    assert fitted.invariances(photographs).shape == (6, D)
    torch.testing.assert_close(fitted.reconstruct(photographs), photographs, atol=0.15, rtol=0)
    found = inversion_quality(fitted, photographs)
    noise = inversion_quality(fitted, torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert found["images"]["similarity"] > 0.9
    assert noise["images"]["pixel_error"] > 3 * noise["draws"]["pixel_error"]


def test_a_killed_inverter_goes_on_where_it_was(tmp_path):
    generator = generator_of(Linear(fails_after=250))
    with pytest.raises(KeyboardInterrupt):
        small().fit(generator, generator.draws(400), out=tmp_path)
    later = Linear()
    generator = generator_of(later)
    small().fit(generator, generator.draws(400), out=tmp_path, resume=True)
    assert later.made < 400 - 192 + 130
    again = Linear()
    generator = generator_of(again)
    finished = small().fit(generator, generator.draws(400), out=tmp_path, resume=True)
    assert again.made < 150
    assert finished.quality_.explained > 0.95


def test_a_differentiable_generator_can_be_inverted_step_by_step():
    basis = torch.tensor(BASIS).float()
    generator = generator_of(lambda w: (w @ basis * 0.25 + 0.5).reshape(-1, 1, 8, 8))
    w = torch.randn(3, D, generator=torch.Generator().manual_seed(2))
    pictures = generator.decode(w)
    found = invert_by_optimization(generator, pictures, steps=80, lr=0.2, prior=0.0)
    torch.testing.assert_close(found.latents, w, atol=0.1, rtol=0)
    assert found.quality.pixel_error < 0.1 * found.quality.pixel_error_between
    torch.testing.assert_close(generator.encode(pictures)[0], found.latents)
    with pytest.raises(ConfigError, match="passes gradients on"):
        invert_by_optimization(generator_of(), pictures)


def test_wrong_arguments_are_told_at_once():
    with pytest.raises(ConfigError, match="side must be at least 8, got 0; steps must be"):
        Inverter(side=0, steps=0)
    with pytest.raises(ConfigError, match="draws of the same generator"):
        small().fit(generator_of(), generator_of().draws(40))
    with pytest.raises(ConfigError, match="resume needs out"):
        small().fit(generator_of(), 40, resume=True)
    with pytest.raises(NotFittedError, match="not fitted"):
        Inverter().encode(torch.rand(1, 1, 8, 8))
