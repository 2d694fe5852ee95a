"""The loop: learns, stops, skips, clips, and resumes to the bit after kill -9."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from posthoc_inn.autoencoders import ConvAutoencoder
from posthoc_inn.config import AutoencoderConfig, TrainConfig
from posthoc_inn.errors import TrainingError
from posthoc_inn.rows.cache import Cache
from posthoc_inn.training import train
from posthoc_inn.training.checkpoint import read_checkpoint
from posthoc_inn.training.loop import clipped_step, gradient_norm
from posthoc_inn.training.tasks import AutoencoderTask


class LineLoss(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.line = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.1), nn.Linear(8, 1))

    def forward(self, x, y):
        return (self.line(x) - y).square().mean()


class LineTask:
    """Regression on a fixed line, with noise of its own, so that every random path of the loop is used."""

    name = "line"

    def __init__(self, poison=(), held_out=None):
        self.module = LineLoss()
        self.poison, self.losses = poison, held_out

    def batch(self, step, generator):
        x = torch.randn(16, 3, generator=generator)
        y = x.sum(1, keepdim=True)
        if step in self.poison:
            y = y * float("nan")
        return x, y

    def held_out(self):
        if self.losses is not None:
            return {"loss": self.losses.pop(0)}
        x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return {"loss": float(self.module.eval()(x, x.sum(1, keepdim=True)))}


CONFIG = TrainConfig(steps=40, batch_size=16, lr=1e-2, eval_every=10, checkpoint_every=5, patience=0, ema=0.9)


def weights(task):
    return {k: v.clone() for k, v in task.module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_training_lowers_the_held_out_loss_and_keeps_the_best_weights():
    task = LineTask()
    before = task.held_out()["loss"]
    history = train(task, CONFIG.replace(steps=200, ema=0.0))
    assert history.best_loss < 0.1 * before
    assert history.stopped == "finished"
    assert not task.module.training
    assert task.held_out()["loss"] == pytest.approx(history.best_loss, rel=1e-6)


def test_the_best_weights_are_those_of_the_best_look_not_the_last():
    task = LineTask(held_out=[3.0, 1.0, 2.0, 2.5])
    history = train(task, CONFIG)
    assert (history.best_step, history.best_loss) == (20, 1.0)


def test_training_stops_early_when_held_out_loss_no_longer_falls():
    task = LineTask(held_out=[1.0, 2.0, 3.0, 4.0])
    history = train(task, CONFIG.replace(patience=2))
    assert history.stopped == "early"
    assert history.rows[-1]["step"] == 30


def test_what_is_kept_is_the_moving_average_of_weights_and_buffers():
    task = LineTask(held_out=[4.0, 3.0, 2.0, 1.0])
    with torch.random.fork_rng():
        task.module.line.insert(1, nn.BatchNorm1d(8))
    expected = {k: v.double() for k, v in weights(task).items()}

    def follow(step, total, figures):
        share = min(CONFIG.ema, step / (step + 9))
        for key, value in task.module.state_dict().items():
            expected[key] = share * expected[key] + (1 - share) * value.double()

    train(task, CONFIG, progress=follow)
    for key, value in weights(task).items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-6)
    assert int(task.module.line[1].num_batches_tracked) == CONFIG.steps


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    train(LineTask(), CONFIG)
    assert torch.equal(torch.get_rng_state(), state)


def test_steps_with_non_finite_losses_are_skipped_and_counted():
    task = LineTask(poison={3, 4, 20})
    history = train(task, CONFIG.replace(max_nonfinite=2))
    assert history.skipped == 3
    assert all(torch.isfinite(p).all() for p in task.module.parameters())


def test_too_many_non_finite_steps_in_a_row_are_fatal_and_say_where():
    with pytest.raises(TrainingError, match=r"line diverged at step 12.*3 steps in a row.*learning rate"):
        train(LineTask(poison=range(10, 40)), CONFIG.replace(max_nonfinite=2))


def test_the_gradient_norm_is_clipped():
    free, clipped = LineTask(), LineTask()
    train(free, CONFIG.replace(steps=1, optimizer="adam", weight_decay=0.0))
    train(clipped, CONFIG.replace(steps=1, optimizer="adam", weight_decay=0.0, clip=1e-30))
    start = LineTask()
    # Adam is invariant to a common factor but for its epsilon, which a norm of 1e-30 falls below.
    moved = max(
        float((a - b).detach().abs().max())
        for a, b in zip(free.module.parameters(), start.module.parameters(), strict=True)
    )
    kept = max(
        float((a - b).detach().abs().max())
        for a, b in zip(clipped.module.parameters(), start.module.parameters(), strict=True)
    )
    assert moved > 1e-4
    assert kept < 1e-6


def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(tmp_path):
    whole, first, second = LineTask(), LineTask(), LineTask()
    train(whole, CONFIG, checkpoint=tmp_path / "whole.safetensors")

    class Stop(Exception):
        pass

    def stop_at_23(step, total, figures):
        if step == 23:
            raise Stop

    with pytest.raises(Stop):
        train(first, CONFIG, checkpoint=tmp_path / "run.safetensors", progress=stop_at_23)
    assert read_checkpoint(tmp_path / "run.safetensors")[1]["step"] == 20
    history = train(second, CONFIG, checkpoint=tmp_path / "run.safetensors", resume=True)
    assert same(weights(second), weights(whole))
    assert [row["step"] for row in history.rows] == [10, 20, 30, 40]


def test_a_finished_run_is_only_loaded(tmp_path):
    train(LineTask(), CONFIG, checkpoint=tmp_path / "run.safetensors")
    calls = []
    again = LineTask()
    train(
        again,
        CONFIG,
        checkpoint=tmp_path / "run.safetensors",
        resume=True,
        progress=lambda *a: calls.append(a),
    )
    assert calls == []
    assert not same(weights(again), weights(LineTask()))


def test_a_checkpoint_of_other_settings_is_refused_naming_them(tmp_path):
    train(LineTask(), CONFIG, checkpoint=tmp_path / "run.safetensors")
    with pytest.raises(TrainingError, match=r"settings that differ: lr\)"):
        train(LineTask(), CONFIG.replace(lr=0.5), checkpoint=tmp_path / "run.safetensors", resume=True)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    train(LineTask(), CONFIG, checkpoint=path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TrainingError, match="not a readable checkpoint"):
        train(LineTask(), CONFIG, checkpoint=path, resume=True)


SCRIPT = """
import signal, sys, time, torch
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it from the start
sys.path.insert(0, {tests!r})
from test_loop import CONFIG, LineTask
from posthoc_inn.training import train
def slow(step, total, figures):
    print(step, flush=True)
    time.sleep({pause})
task = LineTask()
try:
    train(task, CONFIG, checkpoint={path!r}, resume={resume}, progress=slow)
except KeyboardInterrupt:
    sys.exit(130)
"""


def start(path, *, pause, resume):
    code = textwrap.dedent(SCRIPT).format(tests=os.path.dirname(__file__), path=str(path), pause=pause, resume=resume)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def wait_for(process, step):
    for line in process.stdout:
        if int(line) >= step:
            return
    raise AssertionError("the run ended too soon")


def test_a_run_killed_by_sigkill_resumes_to_the_same_bits(tmp_path):
    path = tmp_path / "run.safetensors"
    process = start(path, pause=0.02, resume=False)
    wait_for(process, 17)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert read_checkpoint(path)[1]["step"] in (15, 20)
    resumed, whole = LineTask(), LineTask()
    train(resumed, CONFIG, checkpoint=path, resume=True)
    train(whole, CONFIG)
    assert same(weights(resumed), weights(whole))


def test_ctrl_c_writes_a_checkpoint_of_the_very_step(tmp_path):
    path = tmp_path / "run.safetensors"
    process = start(path, pause=0.05, resume=False)
    wait_for(process, 7)
    time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    step = read_checkpoint(path)[1]["step"]
    assert step >= 7
    assert step % 5 != 0 or step >= 10
    assert any(k.startswith("module.") for k in load_file(path))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bound", [0.5, 1e6, math.inf])
def test_a_clipped_step_is_that_of_torch(bound, fused, dtype):
    modules = [nn.Linear(4, 3).to(dtype) for _ in range(2)]
    modules[1].load_state_dict(modules[0].state_dict())
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.1, fused=fused) for m in modules]
    for k in range(3):
        for module in modules:
            for p, value in zip(module.parameters(), (2.0, -3.0), strict=True):
                p.grad = torch.full_like(p, value * (k + 1))
        expected = nn.utils.clip_grad_norm_(modules[0].parameters(), bound)
        optimizers[0].step()
        norm = gradient_norm(modules[1].parameters())
        assert norm == pytest.approx(float(expected))
        clipped_step(optimizers[1], norm, bound)
    for p, q in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        torch.testing.assert_close(q, p)
    moments = [
        [optimizer.state[p]["exp_avg"] for p in m.parameters()]
        for optimizer, m in zip(optimizers, modules, strict=True)
    ]
    torch.testing.assert_close(moments[1], moments[0])


def test_an_autoencoder_is_trained_on_a_sources_own_images_too():
    own, extra = Cache(), Cache()
    own.append(images=torch.zeros(10, 3, 28, 28, dtype=torch.uint8))
    extra.append(images=torch.arange(1, 7, dtype=torch.uint8)[:, None, None, None].expand(6, 3, 28, 28))
    autoencoder = ConvAutoencoder(AutoencoderConfig(size=28, latent_dim=2, width=1))
    task = AutoencoderTask(autoencoder, own, own, batch_size=8, seed=0, extra=extra)
    generator = torch.Generator().manual_seed(0)
    seen = torch.cat([task.batch(step, generator)[0][:, 0, 0, 0] for step in range(2)])
    assert sorted(seen.tolist()) == [0] * 10 + [1, 2, 3, 4, 5, 6]
    plain = AutoencoderTask(autoencoder, own, own, batch_size=8, seed=0)
    assert not plain.batch(1, generator)[0].any()
