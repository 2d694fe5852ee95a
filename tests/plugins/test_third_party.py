"""A stranger's plugin, installed for real into a fresh environment and used through the command line."""

import json

import pytest
from fresh_environment import ROOT, make_environment

from posthoc_inn.plugins import hook_names

EXAMPLE = ROOT / "examples" / "posthoc-inn-example-plugin"


@pytest.fixture(scope="module")
def posthoc_inn(tmp_path_factory):
    """Return a function that runs the installed `posthoc-inn` in the fresh environment."""
    base = tmp_path_factory.mktemp("environment")
    modules = ("posthoc_inn", "posthoc_inn_example")
    return make_environment(base, [ROOT, EXAMPLE], modules, only="posthoc-inn-example")


def test_the_plugin_is_listed_with_what_it_registered(posthoc_inn):
    listed = {p["distribution"]: p for p in json.loads(posthoc_inn("plugins", "--json"))["plugins"]}
    mine = listed["posthoc-inn-example"]
    assert (mine["status"], mine["error"], mine["version"]) == ("loaded", "", "0.1.0")
    assert mine["registered"] == {
        "analysis": ["color-kept"],
        "autoencoder": ["linear"],
        "backbone": ["stripe-net"],
        "command": ["stripes"],
        "concept source": ["same-color"],
        "dataset": ["stripes"],
        "flow": ["additive"],
        "image metric": ["color-distance"],
    }
    assert mine["hooks"] == hook_names()
    others = {p["status"] for name, p in listed.items() if name not in ("posthoc-inn", "posthoc-inn-example")}
    assert others <= {"disabled"}


def test_its_command_is_in_the_help_and_runs(posthoc_inn, tmp_path):
    assert "Draw striped pictures." in posthoc_inn("--help")
    out = tmp_path / "stripes.png"
    told = json.loads(posthoc_inn("stripes", "--count", "6", "--out", str(out), "--json"))
    assert sum(told["orientations"].values()) == 6
    assert out.read_bytes().startswith(b"\x89PNG")


def test_its_networks_layers_are_listed_by_the_built_in_command(posthoc_inn):
    told = json.loads(posthoc_inn("layers", "--backbone", "stripe-net", "--json"))
    layers = {layer["name"]: layer for layer in (told["layers"] if isinstance(told, dict) else told)}
    assert layers["features.3"]["type"] == "ReLU"
    assert layers["features.3"]["is_cut"] is True


@pytest.mark.slow
def test_its_parts_are_fitted_and_analysed_by_the_built_in_commands(posthoc_inn, tmp_path):
    data = ["--data", "stripes", "--data-option", "count=64"]
    model = ["--backbone", "stripe-net", "--weights", "none", "--layer", "features.3", "--autoencoder", "linear"]
    learn = ["--concepts", "same-color", "--concept-option", "neighbors=3", "--image-metric", "color-distance"]
    steps = ["--preset", "quick", "--steps", "2", "--autoencoder-steps", "2", "--concept-steps", "2"]
    out = tmp_path / "run"
    posthoc_inn("fit", *model, *data, *learn, *steps, "--precision", "32", "--quiet", "--out", str(out))
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["concepts"]["names"] == ["color", "(random)"]
    assert metrics["images"].items() >= {"train": 64, "held_out": 16}.items()
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert [(e["event"], e["stage"]) for e in events] == [
        ("started", "fit"),
        ("stage finished", "autoencoder"),
        ("stage finished", "e"),
        ("stage finished", "t"),
        ("finished", "fit"),
    ]
    # The bundle names the plugin's network and autoencoder, and the plugin builds them again.
    found = json.loads(posthoc_inn("analyze", "color-kept", "--bundle", str(out), *data, "--json"))["Color kept"]
    assert found["images"] == 16
    assert found["others"] > 0
