"""What more steps would gain, on curves whose truth is known, and on real trainings of once and twice the steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_loop import LineTask

from posthoc_inn.config import TrainConfig
from posthoc_inn.training import History, train
from posthoc_inn.training.curve import gain_of_doubling
from posthoc_inn.training.schedule import learning_rate


def curve(progress, *, steps=1000, looks=10, noise_of_steps=0.0, seed=0, spread=0.0):
    """A run whose loss is `progress` of the learning rates so far, and as much noise as the rate is high."""
    config = TrainConfig(steps=steps, lr=3e-3)
    rates = np.array([learning_rate(config, k) for k in range(steps)])
    total, history, generator = rates.cumsum() / rates.max(), History(), np.random.default_rng(seed)
    for step in range(steps // looks, steps + 1, steps // looks):
        loss = progress(total[step - 1]) + noise_of_steps * rates[step - 1] / rates.max()
        loss += spread * generator.standard_normal()
        history.add(step=step, train=loss, held_out=loss, lr=rates[step - 1], gradient_norm=1.0)
    return history


def end_of(progress, **options):
    return curve(progress, **options).rows[-1]["held_out"]


PROGRESS = {
    "slow power": lambda s: 40 * s**-0.3,
    "power": lambda s: 600 / s,
    "exponential": lambda s: 30 * math.exp(-s / 250),
    "still linear": lambda s: 30 - 0.01 * s,
}


@pytest.mark.parametrize("kind", PROGRESS)
@pytest.mark.parametrize("looks", [5, 10, 20])
def test_a_curve_that_falls_goes_on_falling_by_what_it_says(kind, looks):
    progress = PROGRESS[kind]
    found = curve(progress, looks=looks, noise_of_steps=3.0)
    gain = end_of(progress, noise_of_steps=3.0) - end_of(progress, noise_of_steps=3.0, steps=2000)
    assert gain / 2 < found.expected_gain() < 2 * gain
    assert found.verdict(tolerance=0.3) == "still improving"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("looks", [5, 10, 20])
def test_what_only_lower_rates_bring_is_no_progress(looks, seed):
    found = curve(lambda s: 5 + 30 * math.exp(-s / 20), looks=looks, noise_of_steps=8.0, seed=seed, spread=0.05)
    before = min(row["held_out"] for row in found.rows if row["step"] <= 800)
    assert before - found.best_loss > 0.5  # the last fifth of the run did gain
    assert found.expected_gain() < 0.3
    assert found.verdict(tolerance=0.3) == "converged"


def test_a_flat_end_of_the_cosine_is_not_the_end_of_progress():
    found = curve(lambda s: 40 * s**-0.3)
    before = min(row["held_out"] for row in found.rows if row["step"] <= 800)
    assert before - found.best_loss < 0.3  # the last fifth gained nothing
    assert found.verdict(tolerance=0.3) == "still improving"


def test_short_runs_are_judged_by_their_last_look():
    assert math.isnan(gain_of_doubling([1, 2, 3, 4], [1, 1, 1, 1], [4, 3, 2, 1]))
    for losses, verdict in (([9, 5, 1], "still improving"), ([9, 1, 1], "converged"), ([3], "converged")):
        history = History()
        for k, loss in enumerate(losses):
            history.add(step=k, train=loss, held_out=loss, lr=1e-3, gradient_norm=1.0)
        assert history.verdict(tolerance=0.3) == verdict


def test_a_rise_is_overfitting_where_it_is_clear_of_its_error():
    history = History()
    for k, loss in enumerate([9.0, 5, 4, 4.5, 5, 5.5]):
        history.add(step=k, train=9.0 - k, held_out=loss, lr=1e-3, gradient_norm=1.0)
    assert history.verdict(tolerance=0.5, error=0.5) == "overfitting"
    assert history.verdict(tolerance=0.5, error=2.0) == "converged"


class NoisyLineTask(LineTask):
    """Regression on a line under noise: the noise of the steps is in the loss until the rate has fallen."""

    def batch(self, step, generator):
        x = torch.randn(8, 3, generator=generator)
        return x, x.sum(1, keepdim=True) + 2 * torch.randn(8, 1, generator=generator)


@pytest.mark.parametrize(("steps", "verdict"), [(20, "still improving"), (320, "converged")])
def test_real_trainings_of_twice_the_steps_gain_what_was_expected(steps, verdict):
    once, twice = (
        train(NoisyLineTask(), TrainConfig(steps=n, lr=2e-2, eval_every=n // 10, patience=0))
        for n in (steps, 2 * steps)
    )
    gain = once.best_loss - twice.best_loss
    assert once.verdict(tolerance=0.1) == verdict
    if verdict == "converged":
        assert max(gain, once.expected_gain()) < 0.1
    else:
        assert gain / 2.5 < once.expected_gain() < 2.5 * gain
