"""The patch discriminator: its layers, whom each loss moves, the balance by hand, and resuming to the bit."""

from __future__ import annotations

import copy

import pytest
import torch
from small_parts import SPEC, TINY, network_with_state
from torch import nn

from posthoc_inn import Interpreter
from posthoc_inn.autoencoders import ConvAutoencoder, ResidualAutoencoder
from posthoc_inn.config import AutoencoderConfig, TrainConfig
from posthoc_inn.errors import ConfigError
from posthoc_inn.fit.metric import check_trainable
from posthoc_inn.rows.cache import Cache
from posthoc_inn.training import tasks, train
from posthoc_inn.training.adversarial import PatchDiscriminator, adaptive_weight, hinge
from posthoc_inn.training.tasks import AutoencoderLoss, AutoencoderTask

ON, OFF = torch.tensor(0.5), torch.tensor(0.49)


def config(**more):
    return AutoencoderConfig.of_map(32, width=8, **({"discriminator": 0.8, "discriminator_width": 4} | more))


def batch(n=6):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return images, torch.randn(n, 256, generator=generator)


def test_it_has_the_layers_of_the_table_and_fewer_halvings_for_smaller_pictures():
    net = PatchDiscriminator(128)
    shapes = [(m.in_channels, m.out_channels, m.stride[0]) for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert shapes == [(3, 64, 2), (64, 128, 2), (128, 256, 2), (256, 512, 2), (512, 512, 1), (512, 1, 1)]
    assert all(m.kernel_size == (4, 4) for m in net.modules() if isinstance(m, nn.Conv2d))
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == 4
    for size, side in ((28, 7), (32, 8), (64, 8), (96, 6), (256, 16)):
        assert PatchDiscriminator(size, 1, 2)(torch.rand(2, 1, size, size)).shape == (2, 1, side, side)


def test_before_its_turn_the_loss_is_that_of_the_autoencoder_alone():
    module = AutoencoderLoss(ResidualAutoencoder(config()))
    images, noise = batch()
    alone = module.autoencoder.loss_figures(images / 255, noise)["loss"]
    loss = module(images, noise, OFF)
    torch.testing.assert_close(loss, alone)
    loss.backward()
    assert all(p.grad is None for p in module.discriminator.parameters())


@pytest.mark.parametrize("kind", ["residual", "conv"])
def test_loss_and_gradients_are_those_of_two_trainings_done_one_after_the_other(kind, monkeypatch):
    more = {"latent_dim": 256, "width": 8, "size": 32, "discriminator": 0.8, "discriminator_width": 4}
    wanted = config() if kind == "residual" else AutoencoderConfig(**more)
    network = ResidualAutoencoder(wanted) if kind == "residual" else ConvAutoencoder(wanted)
    module = AutoencoderLoss(network).double()
    monkeypatch.setattr(tasks, "unit", lambda x: x.double() / 255)
    images, noise = batch()
    noise = noise.double()
    loss = module(images, noise, ON)
    loss.backward()
    got = {name: p.grad.clone() for name, p in module.named_parameters()}

    def no_distance(pictures, images):
        return 0 * pictures.sum()

    # The discriminator's own step, the autoencoder being constant.
    real = images.double() / 255
    module.zero_grad()
    with torch.no_grad():
        fake = module.autoencoder.loss_figures(real, noise, no_distance)["pictures"]
    scores = module.discriminator(real), module.discriminator(fake)
    own = 0.5 * ((1 - scores[0]).clamp_min(0).mean() + (1 + scores[1]).clamp_min(0).mean())
    own.backward()
    for name, parameter in module.discriminator.named_parameters():
        torch.testing.assert_close(got[f"discriminator.{name}"], parameter.grad, rtol=1e-5, atol=1e-8)

    # The autoencoder's, with the weight by hand: norms at the last layer, of gradients taken one by one.
    last = module.autoencoder.last_layer.weight
    norms = []
    for part in ("own", "adversarial"):
        module.zero_grad()
        figures = module.autoencoder.loss_figures(real, noise, no_distance)
        value = figures["loss"] if part == "own" else -module.discriminator(figures["pictures"]).mean()
        value.backward()
        norms.append(float(last.grad.square().sum().sqrt()))
    weight = norms[0] / (norms[1] + 1e-6)
    module.zero_grad()
    figures = module.autoencoder.loss_figures(real, noise, no_distance)
    total = figures["loss"] - 0.8 * weight * module.discriminator(figures["pictures"]).mean()
    total.backward()
    for name, parameter in module.autoencoder.named_parameters():
        torch.testing.assert_close(got[f"autoencoder.{name}"], parameter.grad, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(loss.detach(), (total + own).detach(), rtol=1e-5, atol=1e-7)


def test_the_adaptive_weight_of_two_linear_losses_is_known_and_bounded():
    at = torch.tensor([1.0, 2.0], requires_grad=True)
    a, b = (at * torch.tensor([3.0, 4.0])).sum(), (at * torch.tensor([0.0, 2.0])).sum()
    weight = adaptive_weight(a, b, at)
    assert float(weight) == pytest.approx(2.5, rel=1e-5)
    assert not weight.requires_grad
    assert float(adaptive_weight(a, 0 * b, at)) == 1e4


def test_the_hinge_is_zero_for_scores_beyond_one():
    assert float(hinge(torch.tensor([1.5]), torch.tensor([-1.0]))) == 0.0
    assert float(hinge(torch.tensor([0.0]), torch.tensor([0.0]))) == 1.0


def rows():
    cache = Cache()
    cache.append(images=batch(24)[0])
    return cache


STEPS = TrainConfig(steps=6, batch_size=6, lr=1e-3, eval_every=2, checkpoint_every=3, patience=0, weight_decay=0.0)


def task(**more):
    return AutoencoderTask(ResidualAutoencoder(config(**more)), rows(), rows(), batch_size=6, seed=0, steps=6)


class Stopped(Exception):
    pass


def test_a_run_stopped_after_it_was_switched_on_is_resumed_to_the_bit(tmp_path):
    def stop(step, total, figures):
        if step == 5:
            raise Stopped

    path = tmp_path / "run.safetensors"
    whole, first, second = task(), task(), task()
    train(whole, STEPS)
    with pytest.raises(Stopped):
        train(first, STEPS, checkpoint=path, progress=stop)
    train(second, STEPS, checkpoint=path, resume=True)
    for (name, a), b in zip(second.module.state_dict().items(), whole.module.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    moved = task().module.discriminator.state_dict()
    assert any(not torch.equal(v, moved[k]) for k, v in whole.module.discriminator.state_dict().items())


def test_the_last_weights_are_kept_whatever_the_held_out_loss():
    one, losses = task(), [1.0, 2.0, 3.0]
    one.held_out = lambda: {"loss": losses.pop(0)}
    history = train(one, STEPS)
    assert (history.best_step, history.best_loss) == (6, 3.0)
    other, losses = task(discriminator=0.0), [1.0, 2.0, 3.0]
    other.held_out = lambda: {"loss": losses.pop(0)}
    assert train(other, STEPS).best_step == 2


def test_a_fit_with_a_discriminator_runs_whole_and_keeps_none_of_it(tmp_path):
    wanted = AutoencoderConfig.of_map(28, width=4, latent_channels=2, discriminator=0.5, discriminator_width=2)
    model = network_with_state()
    interpreter = Interpreter(model, "3", spec=SPEC, autoencoder=wanted, preset=TINY, precision="32")
    interpreter.fit(torch.rand(40, 3, 28, 28))
    assert not any("discriminator" in name for name in interpreter.autoencoder_.state_dict())
    interpreter.save(tmp_path / "bundle")
    assert Interpreter.load(tmp_path / "bundle", model=model).autoencoder_.config.discriminator == 0.5


def test_a_kind_with_a_loss_of_its_own_takes_no_discriminator():
    own = copy.copy(nn.Identity())
    with pytest.raises(ConfigError, match="'linear' are trained by a loss of their own: leave out discriminator"):
        check_trainable(own, AutoencoderConfig(kind="linear", discriminator=1.0))
