"""Noise of codes: how much of it there is, where it counts and where it does not, and that a bundle keeps it."""

import json
import math

import pytest
import torch
from click.testing import CliRunner
from small_parts import SPEC, TINY, network_with_state

from posthoc_inn import Interpreter
from posthoc_inn.cli.fit.command import command
from posthoc_inn.cli.fit.options import FitOptions, choose, command_line
from posthoc_inn.config import AutoencoderConfig, preset
from posthoc_inn.errors import BundleError, ConfigError, TrainingError
from posthoc_inn.objectives import drawn, flow_nll
from posthoc_inn.plugins import get_plugin_manager
from posthoc_inn.report.fitted import _network_settings
from posthoc_inn.rows.code_noise import CodeNoise
from posthoc_inn.training.tasks import flow_nats

SHARE = 0.3


def images(n=80, seed=3):
    return torch.rand(n, 3, 28, 28, generator=torch.Generator().manual_seed(seed))


def fitted(share, *, is_map=True, model=None, **more):
    config = AutoencoderConfig.of_map(28, width=4, latent_channels=2) if is_map else None
    interpreter = Interpreter(
        model or network_with_state(), "3", spec=SPEC, autoencoder=config, preset=TINY.replace(code_noise=share),
        precision="32", device="cpu",
    )  # fmt: skip
    return interpreter.fit(images(), held_out=images(40, seed=4), **more)


@pytest.fixture(scope="module")
def pair():
    """The same fit without and with noise of codes."""
    return fitted(0.0), fitted(SHARE)


def channel_deviations(interpreter, data):
    mean, _ = interpreter.autoencoder_.encode(data)
    return mean.detach().double().unflatten(1, (interpreter.autoencoder_.latent_shape[0], -1)).std((0, 2), correction=0)


def test_there_is_as_much_as_a_share_of_each_channels_deviation_over_the_training_images(pair):
    plain, noisy = pair
    assert plain.pipeline_.code_noise is None
    assert "code_noise" not in plain.metrics_
    found = torch.tensor(noisy.pipeline_.code_noise.deviations)
    # Cached images are bytes.
    expected = SHARE * channel_deviations(noisy, (images() * 255).round() / 255)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-6)
    assert len(found) == 2
    assert bool((found > 0).all())


def test_a_vector_has_a_deviation_each_number():
    codes = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2, 3, 4, 5, 0])
    found = CodeNoise.of(codes, (6,), share=0.5)
    torch.testing.assert_close(torch.tensor(found.deviations), 0.5 * codes.std(0, correction=0))
    std = torch.rand(3, 6)
    expected = (std**2 + torch.tensor(found.deviations) ** 2).sqrt()
    torch.testing.assert_close(found.added(std), expected)


def test_the_autoencoder_is_the_same_and_measured_without_it(pair):
    plain, noisy = pair
    for name, tensor in plain.autoencoder_.state_dict().items():
        assert torch.equal(tensor, noisy.autoencoder_.state_dict()[name])
    for name in ("error", "kl", "similarity"):
        assert noisy.metrics_["autoencoder"][name] == pytest.approx(plain.metrics_["autoencoder"][name], rel=1e-4)
    told = noisy.metrics_["code_noise"]
    assert told["share"] == SHARE
    assert told["error"] > noisy.metrics_["autoencoder"]["error"]


def test_held_out_nats_and_their_floor_are_those_of_codes_with_it(pair):
    noisy = pair[1]
    own, added = (p.pipeline.encode(p.pipeline.adapter.read(images(40, seed=4)))[1] for p in pair)
    deviation = torch.tensor(noisy.pipeline_.code_noise.deviations).repeat_interleave(own.shape[1] // 2)
    torch.testing.assert_close(added, (own**2 + deviation**2).sqrt())
    floors = [p.metrics_["likelihood"]["noise_floor"] for p in pair]
    entropies = [float((0.5 * math.log(2 * math.pi * math.e) + s.log()).sum(1).mean()) for s in (own, added)]
    assert floors[1] > floors[0]
    assert floors == pytest.approx(entropies, abs=0.5)  # held-out bytes, and half of the images choose
    # By hand: z_bar drawn with both noises.
    pipeline = noisy.pipeline
    shown = pipeline.adapter.read(images(40, seed=4))
    context = pipeline.context(pipeline.features(shown))
    mean, std = pipeline.encode(shown)
    nats = float(flow_nll(*noisy.flow_(drawn(mean, std, 0), context)).mean().detach())
    told = noisy.metrics_["likelihood"]  # another draw of the noise, of images as bytes
    assert nats == pytest.approx(told["held_out"], abs=4 * told["held_out_error"])
    assert float(-noisy.log_likelihood(images(40, seed=4)).mean()) == pytest.approx(nats, abs=1e-3)


def test_t_is_trained_on_codes_with_it(monkeypatch):
    seen = []

    def look(flow, cache, **more):
        seen.append(cache["std"].tensor())
        return flow_nats(flow, cache, **more)

    monkeypatch.setattr("posthoc_inn.training.tasks.flow_nats", look)
    noisy = fitted(SHARE)
    least = min(noisy.pipeline_.code_noise.deviations)
    assert seen
    assert all(float(std.min()) >= least for std in seen)


def test_a_bundle_keeps_it(pair, tmp_path):
    _, noisy = pair
    noisy.save(tmp_path / "bundle")
    model = noisy.model
    again = Interpreter.load(tmp_path / "bundle", model=model)
    assert again.pipeline_.code_noise == noisy.pipeline_.code_noise
    some = images(4)
    assert torch.equal(again.log_likelihood(some), noisy.log_likelihood(some))
    again.save(tmp_path / "again")
    assert Interpreter.load(tmp_path / "again", model=model).pipeline_.code_noise == noisy.pipeline_.code_noise
    assert "noise of codes" in _network_settings(again, again.metrics_)


@pytest.mark.parametrize(
    "given",
    [
        {"share": 0.3, "deviations": [0.1]},
        {"share": 0.3, "deviations": [0.1, -0.1]},
        {"share": 0.3, "deviations": [0.1, "many"]},
        {"share": math.inf, "deviations": [0.1, 0.1]},
        {"deviations": [0.1, 0.1]},
        ["share"],
        0.3,
    ],
    ids=str,
)
def test_a_changed_bundle_is_refused(given):
    with pytest.raises(BundleError, match=r"none for codes of shape \(2, 7, 7\): .* and 2 deviations"):
        CodeNoise.read(given, (2, 7, 7))
    assert CodeNoise.read(None, (2, 7, 7)) is None
    right = CodeNoise(0.5, (0.1, 0.2))
    assert CodeNoise.read(json.loads(json.dumps(right.to_dict())), (2, 7, 7)) == right


def test_a_run_goes_on_with_the_same_share_only(tmp_path):
    model = network_with_state()
    first = fitted(SHARE, model=model, out=tmp_path / "run")
    same = fitted(SHARE, model=model, out=tmp_path / "run", resume=True)
    state = first.flow_.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in same.flow_.state_dict().items())
    with pytest.raises(TrainingError, match=r"t\.safetensors was written while .* or other noise of codes than now"):
        fitted(0.1, model=model, out=tmp_path / "run", resume=True)


def test_a_plan_tells_of_it_and_wrong_shares_are_refused():
    interpreter = Interpreter(network_with_state(), "3", spec=SPEC, preset=TINY.replace(code_noise=0.1), device="cpu")
    lines = interpreter.plan(images()).lines
    assert any("codes with noise of 0.1 of each channel's deviation" in line for line in lines)
    with pytest.raises(ConfigError, match=r"code_noise must be in \[0, 1\], got 3"):
        preset("default").replace(code_noise=3)
    options = FitOptions(code_noise=0.2)
    assert choose(options, get_plugin_manager()).config.code_noise == 0.2
    assert choose(FitOptions(), get_plugin_manager()).config.code_noise == 0.0
    assert "--code-noise 0.2" in command_line(options)
    answer = CliRunner().invoke(command, ["--code-noise", "3"])
    assert answer.exit_code == 2
    assert "'--code-noise'" in answer.output
