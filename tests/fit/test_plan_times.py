"""The plan's time of an autoencoder with a discriminator, which takes part in the later steps only."""

import math

import pytest
import torch
from small_parts import SPEC, TINY, network_with_state

from posthoc_inn import Interpreter
from posthoc_inn.config import AutoencoderConfig
from posthoc_inn.fit import plan
from posthoc_inn.training.tasks import AutoencoderLoss

STEPS = 40


def seconds(monkeypatch, **more):
    """The plan's seconds of the autoencoder, where a step with the discriminator takes 10 seconds, one without 1."""
    taken = []

    def forward(self, images, noise, progress=None):
        is_on = progress is not None and float(progress) >= self.autoencoder.config.discriminator_start
        taken.append(10.0 if is_on else 1.0)
        return sum(p.square().sum() for p in self.parameters())

    def time_of(step, _device):
        step()
        return taken[-1]

    monkeypatch.setattr(AutoencoderLoss, "forward", forward)
    monkeypatch.setattr(plan, "_time", time_of)
    config = AutoencoderConfig(latent_dim=8, width=4, discriminator_width=4, **more)
    preset = TINY.replace(autoencoder_training=TINY.autoencoder_training.replace(steps=STEPS))
    interpreter = Interpreter(network_with_state(), "3", spec=SPEC, autoencoder=config, preset=preset, device="cpu")
    return interpreter.plan(torch.rand(40, 3, 28, 28)).seconds["autoencoder"]


@pytest.mark.parametrize("start", [0.0, 0.51, 0.9])
def test_steps_before_the_discriminator_are_timed_without_it(monkeypatch, start):
    found = seconds(monkeypatch, discriminator=0.5, discriminator_start=start)
    # Step by step, as in training.
    assert found == sum(10.0 if step / STEPS >= start else 1.0 for step in range(STEPS))
    assert found == pytest.approx(math.ceil(start * STEPS) + 10 * (STEPS - math.ceil(start * STEPS)))


def test_without_one_every_step_is_alike(monkeypatch):
    assert seconds(monkeypatch) == STEPS
