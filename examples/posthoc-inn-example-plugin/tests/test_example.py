"""How a plugin is tested without installing it: hand its module to a manager of the test's own."""

import json

import click
import posthoc_inn_example
import pytest
import torch
from click.testing import CliRunner

from posthoc_inn.plugins import PluginManager
from posthoc_inn.plugins.hookspecs import FitEvent


@pytest.fixture
def manager():
    manager = PluginManager(entry_points=[])
    manager.load()
    manager.register(posthoc_inn_example, distribution="posthoc-inn-example")
    return manager


def test_the_network_takes_the_data_sets_images(manager):
    model = manager.build_backbone("stripe-net")
    image, label = manager.build_dataset("stripes", count=10)[3]
    assert image.shape == (3, 28, 28)
    assert image.min() >= 0
    assert image.max() <= 1
    assert 0 <= label < 4
    assert model(image[None]).shape == (1, 4)


def test_random_weights_are_the_same_at_every_call_and_leave_the_global_generator_alone(manager):
    before = torch.get_rng_state()
    a, b = (manager.build_backbone("stripe-net").state_dict() for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_same_seed_gives_the_same_pictures_and_the_parts_differ(manager):
    train, again = (manager.build_dataset("stripes", seed=3, count=20) for _ in range(2))
    held_out = manager.build_dataset("stripes", seed=3, count=80, train=False)
    assert torch.equal(train[7][0], again[7][0])
    assert len(held_out) == 20
    assert not torch.equal(train[7][0], held_out[7][0])


def test_the_command_writes_a_picture(manager, tmp_path):
    cli = click.Group("posthoc-inn")
    manager.register_commands(cli)
    out = tmp_path / "stripes.png"
    result = CliRunner().invoke(cli, ["stripes", "--count", "5", "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    assert sum(json.loads(result.output)["orientations"].values()) == 5
    assert out.read_bytes().startswith(b"\x89PNG")


def test_each_finished_stage_becomes_a_line(manager, tmp_path):
    manager.fit_stage_finished(FitEvent("t", str(tmp_path), {"seconds": 1.5}))
    assert json.loads((tmp_path / "stages.jsonl").read_text()) == {"stage": "t", "seconds": 1.5}
