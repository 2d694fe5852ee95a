"""How a plugin is tested without installing it: hand its module to a manager of the test's own."""

import json
from pathlib import Path

import click
import posthoc_inn_example
import pytest
import torch
from click.testing import CliRunner

from posthoc_inn.config import AutoencoderConfig, FlowConfig
from posthoc_inn.flows import CouplingFlow
from posthoc_inn.plugins import PluginManager
from posthoc_inn.plugins.hookspecs import FitEvent


@pytest.fixture
def manager() -> PluginManager:
    manager = PluginManager(entry_points=[])
    manager.load()
    manager.register(posthoc_inn_example, distribution="posthoc-inn-example")
    return manager


def images(manager: PluginManager, count: int) -> torch.Tensor:
    data = manager.build_dataset("stripes", count=count)
    return torch.stack([data[i][0] for i in range(count)])


def test_the_network_takes_the_data_sets_images(manager: PluginManager) -> None:
    model = manager.build_backbone("stripe-net")
    image, label = manager.build_dataset("stripes", count=10)[3]
    assert image.shape == (3, 28, 28)
    assert image.min() >= 0
    assert image.max() <= 1
    assert 0 <= label < 4
    assert model(image[None]).shape == (1, 4)


def test_random_weights_are_the_same_at_every_call_and_leave_the_global_generator_alone(manager: PluginManager) -> None:
    before = torch.get_rng_state()
    a, b = (manager.build_backbone("stripe-net").state_dict() for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_same_seed_gives_the_same_pictures_and_the_parts_differ(manager: PluginManager) -> None:
    train, again = (manager.build_dataset("stripes", seed=3, count=20) for _ in range(2))
    held_out = manager.build_dataset("stripes", seed=3, count=80, train=False)
    assert torch.equal(train[7][0], again[7][0])
    assert not torch.equal(train[7][0], held_out[7][0])
    with pytest.raises(IndexError, match="20"):
        held_out[20]


def test_the_autoencoder_learns(manager: PluginManager) -> None:
    config = AutoencoderConfig(kind="linear", size=28, channels=3, latent_dim=8)
    autoencoder = manager.build(manager.autoencoders, "linear", config)
    x = images(manager, 64)
    mean, std = autoencoder.encode(x)
    assert mean.shape == std.shape == (64, 8)
    assert autoencoder.decode(mean).shape == x.shape
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=3e-3)
    losses = []
    for step in range(200):
        noise = torch.randn(64, 8, generator=torch.Generator().manual_seed(step))
        loss = autoencoder.loss(x, noise)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_the_coupling_is_inverted_and_keeps_volumes(manager: PluginManager) -> None:
    config = FlowConfig(dim=5, blocks=2, width=8, kind="additive", context_dim=3)
    flow = CouplingFlow(config, coupling=manager.flows.get("additive").factory)
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(64, 5, generator=generator), torch.randn(64, 3, generator=generator)
    flow.initialize(x, context)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    y, log_det = flow(x, context)
    assert (y - x).abs().max() > 0.1
    torch.testing.assert_close(flow.inverse(y, context), x, atol=1e-4, rtol=1e-4)
    # What volume changes is actnorm's, the same for each row.
    torch.testing.assert_close(log_det, log_det[:1].expand(64))


def test_pairs_are_nearer_in_color_than_others(manager: PluginManager) -> None:
    data = manager.build_dataset("stripes", count=60)
    source = manager.build(manager.concept_sources, "same-color", data, seed=0, neighbors=3)
    a, b, shared = source.pairs(200, seed=1)
    assert source.names == ("color",)
    assert shared.tolist() == [[False, True]] * 200
    assert not (a == b).any()
    metric = manager.build(manager.image_metrics, "color-distance")
    x = images(manager, 60)
    assert metric(x[a], x[b]).mean() < 0.4 * metric(x[a], x[b.roll(1)]).mean()


def test_the_command_writes_a_picture(manager: PluginManager, tmp_path: Path) -> None:
    cli = click.Group("posthoc-inn")
    manager.register_commands(cli)
    out = tmp_path / "stripes.png"
    result = CliRunner().invoke(cli, ["stripes", "--count", "5", "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    assert sum(json.loads(result.output)["orientations"].values()) == 5
    assert out.read_bytes().startswith(b"\x89PNG")


def test_each_event_of_a_fit_becomes_a_line(manager: PluginManager, tmp_path: Path) -> None:
    manager.fit_started(FitEvent("fit", str(tmp_path)))
    manager.fit_stage_finished(FitEvent("t", str(tmp_path), {"seconds": 1.5}))
    manager.fit_failed(FitEvent("fit", str(tmp_path), {"error": "disk full"}))
    manager.fit_finished(FitEvent("fit", None))
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert lines == [
        {"event": "started", "stage": "fit"},
        {"event": "stage finished", "stage": "t", "seconds": 1.5},
        {"event": "failed", "stage": "fit", "error": "disk full"},
    ]
