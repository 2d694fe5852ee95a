"""t trained by what the model sees of its samples: nearer to z where the truth is known; nothing else is touched."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from small_parts import SPEC, TINY, network, network_with_state
from torch import nn

from posthoc_inn import Interpreter
from posthoc_inn.cli.fit.command import command
from posthoc_inn.cli.fit.options import FitOptions, choose, command_line
from posthoc_inn.config import AutoencoderConfig, ConditionerConfig, FlowConfig, TrainConfig, preset
from posthoc_inn.errors import ConfigError, TrainingError
from posthoc_inn.fit import FitRequest, plan, stages
from posthoc_inn.fit.faithful import FEWEST, FaithfulLoss, FaithfulTask, held_out_misfit
from posthoc_inn.fit.linear import Comparison
from posthoc_inn.flows import ConditionalFlow
from posthoc_inn.objectives import flow_nll
from posthoc_inn.plugins import get_plugin_manager
from posthoc_inn.progress import Reporter
from posthoc_inn.report.fitted import _network_settings
from posthoc_inn.rows.cache import Cache
from posthoc_inn.training import train
from posthoc_inn.training.threads import using_threads

DIM, NOISE = 24, 0.1
MIXED = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(3)))[0]


def seen(latents):
    """What a known network sees of latents: six bent numbers of six directions, nothing of the other eighteen."""
    a, b = (latents @ MIXED[:, :6].to(latents)).chunk(2, dim=-1)
    return torch.cat([a * b, torch.sin(2 * a)], dim=-1)


def world(n, seed):
    """Latents N(0, 1), an encoder that knows them up to some noise, and z, which is exactly what is seen of them."""
    generator = torch.Generator().manual_seed(seed)
    z_bar, noise = torch.randn(2, n, DIM, generator=generator)
    mean = (z_bar + NOISE * noise) / (1 + NOISE**2)
    cache = Cache()
    cache.append(z=seen(z_bar), mean=mean, std=torch.full_like(mean, NOISE / math.sqrt(1 + NOISE**2)))
    return cache


def begun(steps, train_rows, held_out):
    """A t that likelihood was not given the time for."""
    flow = ConditionalFlow(
        FlowConfig(dim=DIM, context_dim=16, blocks=3, width=32),
        ConditionerConfig(z_shape=(6,), context_dim=16, width=32),
    )
    flow.conditioner.fit_standardization([train_rows["z"].tensor()])
    flow.initialize(train_rows["mean"].tensor(), train_rows["z"].tensor())
    train(task_of(flow, train_rows, held_out, 0.0), training(steps, 4e-3))
    return flow


def training(steps, lr):
    return TrainConfig(steps=steps, batch_size=128, lr=lr, eval_every=0, patience=0)


def task_of(flow, train_rows, held_out, weight, floor=0.0):
    loss = FaithfulLoss(flow, seen, weight, floor=floor)
    return FaithfulTask(loss, train_rows, held_out, batch_size=128, samples=64, seed=0)


@torch.no_grad()
def of_samples(flow, rows):
    """The misfit of many samples, and their deviation for one z in the directions of which nothing is seen."""
    z = rows["z"].tensor()[:200]
    v = torch.randn(100, DIM, generator=torch.Generator().manual_seed(9))
    drawn = flow.eval().inverse(v.expand(200, -1, -1), flow.context(z).unsqueeze(1))
    apart = (seen(drawn) - z.unsqueeze(1)).square().sum() / 100
    return float(apart / (z - z.mean(0)).square().sum()), float((drawn @ MIXED[:, 6:]).std(1).mean())


def test_samples_come_nearer_to_z_and_still_vary_as_the_truth_does():
    train_rows, held_out = world(4000, 0), world(1000, 1)
    start = begun(300, train_rows, held_out)
    found, nats = {}, {}
    for weight in (0.0, TINY.faithful_weight):
        flow = copy.deepcopy(start)
        task = task_of(flow, train_rows, held_out, weight)
        train(task, training(160, 1e-3))
        found[weight], nats[weight] = of_samples(flow, held_out), task.held_out()["nats"]
    likelihood, faithful = found.values()
    # Beside as many steps by likelihood alone, from the same start.
    assert faithful[0] < 0.75 * likelihood[0]
    # Of the directions that are not seen z says nothing: their deviation is 1, whatever z is.
    assert faithful[1] == pytest.approx(1.0, abs=0.06)
    assert nats[TINY.faithful_weight] < nats[0.0] + 1.0


def test_below_the_misfit_of_images_own_latents_nothing_is_gained():
    rows = world(1000, 1)
    flow = begun(1, rows, rows).eval()
    loss = FaithfulLoss(flow, seen, 1.0)
    own = held_out_misfit(loss, rows, 64, own=True)
    # By hand, and by the truth: z is exact, the encoder is not.
    z, mean, std = (rows[name].tensor() for name in ("z", "mean", "std"))
    drawn = mean + std * torch.randn(mean.shape, generator=torch.Generator().manual_seed(5))
    expected = float((seen(drawn) - z).square().sum() / (z - z.mean(0)).square().sum())
    assert own == pytest.approx(expected, rel=0.25)
    bounded = FaithfulLoss(flow, seen, 1.0, floor=own)
    for misfit, is_worth_it in ((1.5 * own, True), (0.9 * own, False)):
        value = torch.tensor(misfit, requires_grad=True)
        (slope,) = torch.autograd.grad(bounded.cost_of(value, DIM), value)
        assert bool(slope > 0) == is_worth_it


def test_its_gradient_is_that_of_autograd_through_everything_and_reaches_neither_decoder_nor_model():
    flow = begun(1, world(1000, 0), world(100, 1)).double().train()
    decoder = nn.Linear(DIM, 9).double()
    model = nn.Sequential(nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 6)).double()
    rows = world(16, 2)
    z, mean, std = (rows[name].tensor().double() for name in ("z", "mean", "std"))
    noise, v, none = torch.randn_like(mean), torch.randn(7, DIM).double(), torch.empty(0, DIM).double()
    loss = FaithfulLoss(flow, lambda x: model(decoder(x)), weight=0.7)
    flow.zero_grad()
    value = loss(z, mean, std, noise, v, torch.empty(2, 0, DIM), none)
    value.backward()
    found = [p.grad.clone() for p in flow.parameters()]
    assert all(p.grad is None for net in (decoder, model) for p in net.parameters())
    flow.zero_grad()
    flow.train(False)
    out, log_det = flow(mean + std * noise, flow.context(z))
    latents = flow.inverse(v, flow.context(z[:7]))
    apart = (model(decoder(latents)) - z[:7]).square().sum(1)
    misfit = apart.sum() / (z[:7] - flow.conditioner.z_mean).square().sum()
    plain = flow_nll(out, log_det).mean() + 0.5 * 0.7 * DIM * misfit.log()
    plain.backward()
    assert value.item() == pytest.approx(plain.item(), abs=1e-9)
    for a, b in zip(found, flow.parameters(), strict=True):
        torch.testing.assert_close(a, b.grad, rtol=1e-6, atol=1e-9)


def test_what_it_costs_does_not_know_zs_unit():
    rows, told = world(1000, 0), []
    v = torch.randn(32, DIM, generator=torch.Generator().manual_seed(0))
    for unit in (1.0, 1000.0):
        flow = begun(1, rows, rows)
        flow.conditioner.fit_standardization([unit * rows["z"].tensor()], force=True)
        loss = FaithfulLoss(flow.eval(), lambda x, unit=unit: unit * seen(x), 1.0)
        told.append(loss.cost(unit * rows["z"].tensor()[:32], v).item())
    assert told[0] == pytest.approx(told[1], abs=1e-3)


# ---- whole fits

SOME = TINY.replace(faithful=1.0)


def images(n=80, seed=3):
    return torch.rand(n, 3, 28, 28, generator=torch.Generator().manual_seed(seed))


def interpreter(config=SOME, *, model=None, is_map=True, **more):
    shape = AutoencoderConfig.of_map(28, width=4, latent_channels=2) if is_map else None
    return Interpreter(
        model or network(), "3", spec=SPEC, autoencoder=shape, preset=config, precision="32", device="cpu", **more
    )


def fitted(config=SOME, *, model=None, is_map=True, **more):
    return interpreter(config, model=model, is_map=is_map).fit(images(), held_out=images(40, seed=4), **more)


@pytest.mark.parametrize("is_map", [True, False])
def test_a_fit_tells_what_it_did_and_leaves_the_model_alone(is_map):
    model = network_with_state()
    before = copy.deepcopy(model.state_dict())
    found = fitted(model=model, is_map=is_map)
    told = found.metrics_["faithful"]
    assert told["weight"] == SOME.faithful_weight
    assert told["samples"] >= 1
    assert told["after"]["misfit"] != told["before"]["misfit"]
    curve = found.metrics_["training"]["faithful"]
    steps = interpreter(is_map=is_map).prepare(FitRequest(data=images())).parts.faithful.steps
    assert curve["rows"][-1]["step"] == told["steps"] == steps
    settings = _network_settings(found, found.metrics_)["t, by its samples"]
    assert f"{steps} more steps" in settings
    assert f"to {told['after']['misfit']:.2f} (images' own latents: {told['floor']:.2f})" in settings
    if curve["best_step"] == steps:
        assert curve["rows"][-1]["misfit"] == pytest.approx(told["after"]["misfit"], rel=1e-4)
    assert math.isfinite(told["after"]["nats"])
    assert found.metrics_["seconds"]["faithful"] > 0
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None for p in model.parameters())
    assert not any(h for m in model.modules() for h in (m._forward_hooks, m._forward_pre_hooks))


def test_it_starts_from_the_t_of_likelihood_alone():
    plain, more = fitted(TINY), fitted()
    assert "faithful" not in plain.metrics_
    assert more.history_.to_dict()["rows"] == plain.history_.to_dict()["rows"]
    assert any(not torch.equal(a, b) for a, b in zip(plain.flow_.parameters(), more.flow_.parameters(), strict=True))


class Stopping(Reporter):
    """Stops a fit while t is trained by its samples."""

    name = ""

    def stage(self, name, total):
        self.name = name

    def advance(self, done, figures=None):
        if self.name == "faithful" and done >= 5:
            raise KeyboardInterrupt


def test_a_stopped_one_goes_on_to_what_it_would_have_come_to(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fitted(out=tmp_path / "run", progress=Stopping())
    with pytest.raises(TrainingError):
        fitted(SOME.replace(faithful=2.0), out=tmp_path / "run", resume=True)
    resumed, whole = fitted(out=tmp_path / "run", resume=True), fitted()
    assert all(torch.equal(a, b) for a, b in zip(resumed.flow_.parameters(), whole.flow_.parameters(), strict=True))
    for name, value in whole.metrics_["faithful"]["before"].items():
        assert resumed.metrics_["faithful"]["before"][name] == pytest.approx(value)


def test_where_the_linear_t_takes_its_place_it_is_left_out_and_said_so(monkeypatch):
    monkeypatch.setattr(stages, "compare", lambda *_: Comparison(-1.0, 0.1))
    notes = []

    class Noting(Reporter):
        def note(self, text):
            notes.append(text)

    found = fitted(SOME.replace(linear_fallback=True), progress=Noting())
    assert "faithful" not in found.metrics_
    assert any("not trained further by its samples" in note for note in notes)


def test_refits_are_trained_alike():
    found = fitted(refits=1)
    assert {"faithful", "faithful refit 1"} <= set(found.metrics_["seconds"])


def test_a_model_that_passes_no_gradients_is_noted_before_training():
    notes = []

    class Noting(Reporter):
        def note(self, text):
            notes.append(text)

    class Closed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.rest = network()[:4], network()[4:]

        def forward(self, x):
            with torch.no_grad():
                return self.rest(self.first(x))

    found = Interpreter(Closed(), "first", spec=SPEC, preset=SOME, precision="32", device="cpu", autoencoder=None).fit(
        images(), held_out=images(40, seed=4), progress=Noting()
    )
    assert "faithful" not in found.metrics_
    assert any("not trained by what the model sees" in note and "no_grad" in note for note in notes)


def test_the_plan_says_so_with_its_time():
    plan, without = (interpreter(config).plan(images()) for config in (SOME, TINY))
    assert plan.seconds["faithful"] > 0
    assert "faithful" not in without.seconds
    assert any("steps that ask the model of" in line for line in plan.lines)


def test_its_threads_are_settled_on_once_t_is_trained(monkeypatch):
    # A long stage is timed just before it begins: on a t that is initialised, and keeps its weights.
    monkeypatch.setattr(plan, "MIN_STEPS", 1)
    with using_threads(1):  # sums of two threads differ in their last digits
        found, plain = fitted(), fitted(TINY)
    assert found.metrics_["threads"]["faithful"] >= 1
    assert found.history_.to_dict()["rows"] == plain.history_.to_dict()["rows"]
    assert found.metrics_["faithful"]["before"]["nats"] == pytest.approx(plain.history_.rows[-1]["held_out"], abs=1e-3)


class Wide(nn.Module):
    """A network beside which t costs nothing."""

    def __init__(self, width):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.more = nn.Conv2d(width, 4, 3, padding=1)
        self.rest = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))

    def forward(self, x):
        return self.rest(torch.relu(self.more(torch.relu(self.first(x)))))


@pytest.mark.parametrize("width", [2, 2000])
def test_a_model_that_costs_far_more_than_t_is_asked_less_often(width):
    config = SOME.replace(flow_training=SOME.flow_training.replace(steps=1000))
    plan = Interpreter(Wide(width), "rest.1", spec=SPEC, preset=config, device="cpu").prepare(
        FitRequest(data=images(), held_out=images(40, 4))
    )  # fmt: skip
    asked = plan.parts.faithful
    assert asked.samples >= FEWEST
    assert (asked.steps < 100) == (width == 2000)


def test_its_steps_are_a_share_of_those_of_t():
    asked = [
        interpreter(TINY.replace(faithful=share)).prepare(FitRequest(data=images(), steps=steps)).parts.faithful.steps
        for share, steps in ((1.0, 1000), (0.5, 1000), (0.5, 500))
    ]
    assert asked[1] == pytest.approx(asked[0] / 2, abs=1)
    assert asked[2] == pytest.approx(asked[0] / 4, abs=1)
    of_maps = preset("default").replace(faithful=0.0, map_faithful=0.5).of_maps()
    assert of_maps.faithful == 0.5
    assert preset("default").replace(faithful=0.3, map_faithful=None).of_maps().faithful == 0.3


@pytest.mark.parametrize("wrong", [{"faithful": -0.1}, {"faithful_weight": -1.0}, {"map_faithful": 101.0}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TINY.replace(**wrong)


def test_the_command_line_hands_it_on():
    options = FitOptions(faithful=0.4)
    assert "--faithful 0.4" in command_line(options)
    config = choose(options, get_plugin_manager()).config
    assert (config.faithful, config.of_maps().faithful) == (0.4, 0.4)
    off = choose(FitOptions(faithful=0.0), get_plugin_manager()).config
    assert (off.faithful, off.of_maps().faithful) == (0.0, 0.0)
    found = CliRunner().invoke(command, ["--faithful", "-1"])
    assert found.exit_code == 2
    assert "--faithful" in found.output


def test_the_command_trains_so(tmp_path, monkeypatch):
    # Of eight steps the linear t would take the place.
    monkeypatch.setattr(stages, "compare", lambda *_: Comparison(1.0, 0.1))
    for k, pixels in enumerate((images(60) * 255).byte()):
        (tmp_path / "data").mkdir(exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / "data" / f"{k}.png")
    arguments = [
        "--preset", "few", "--steps", "8", "--autoencoder-steps", "8", "--faithful", "0.5", "--data",
        str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--backbone", "small_cnn", "--weights", "none",
        "--layer", "stage2", "--quiet",
    ]  # fmt: skip
    found = CliRunner().invoke(command, arguments)
    assert found.exit_code == 0, found.output
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["fit"]["faithful"] == 0.5
    assert metrics["training"]["faithful"]["rows"][-1]["step"] >= 1
    assert "training t by its samples" in (tmp_path / "run" / "report.html").read_text()
