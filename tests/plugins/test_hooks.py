"""Each plugin hook, from a plugin's implementation to the user; `tests/test_hookspecs.py` demands one test a hook."""

import click
import pytest
import torch
from click.testing import CliRunner

from posthoc_inn import hookimpl
from posthoc_inn.config import AutoencoderConfig, FlowConfig
from posthoc_inn.errors import DuplicateNameError
from posthoc_inn.plugins import PluginManager
from posthoc_inn.plugins.hookspecs import FitEvent


class Plugin:
    """Takes functions named like hooks, and listens to every event."""

    def __init__(self, **functions):
        for name, function in functions.items():
            setattr(self, name, hookimpl(function))


def load(*plugins):
    warnings = []
    manager = PluginManager([], warn=warnings.append)
    manager.load()
    for i, plugin in enumerate(plugins):
        manager.register(plugin, distribution=f"mine-{i}")
    return manager, warnings


def identity_coupling(config, index, *, generator):
    class Identity(torch.nn.Module):
        def forward(self, x, context=None):
            return x, x.new_zeros(x.shape[:-1])

        def inverse(self, y, context=None):
            return y

    return Identity()


def test_register_backbones_makes_a_network_available():
    def register_backbones(register):
        register("net", lambda *, weights, num_classes: torch.nn.Linear(2, num_classes), layers=["0"])

    manager, _ = load(Plugin(register_backbones=register_backbones))
    model = manager.build_backbone("net", num_classes=5)
    assert model.out_features == 5
    assert not model.training
    assert manager.backbones.get("net").metadata["layers"] == ["0"]
    assert manager.image_spec("net") is None


def test_register_autoencoders_makes_an_autoencoder_available():
    def register_autoencoders(register):
        register("mine", lambda config: torch.nn.Linear(config.latent_dim, 1), sizes=[28], channels=[3])

    manager, _ = load(Plugin(register_autoencoders=register_autoencoders))
    built = manager.build(manager.autoencoders, "mine", AutoencoderConfig(latent_dim=7))
    assert built.in_features == 7


def test_register_flows_makes_a_coupling_that_the_flow_accepts():
    from posthoc_inn.flows import CouplingFlow

    manager, _ = load(Plugin(register_flows=lambda register: register("identity", identity_coupling)))
    flow = CouplingFlow(FlowConfig(dim=4, blocks=2, kind="identity"), coupling=manager.flows.get("identity").factory)
    x = torch.randn(64, 4)
    flow.initialize(x)
    assert torch.allclose(flow.inverse(flow(x)[0]), x, atol=1e-5)


@pytest.mark.parametrize("kind", ["affine", "spline"])
def test_register_flows_of_the_core_builds_the_cores_couplings(kind):
    from posthoc_inn.flows import COUPLINGS

    manager, _ = load()
    coupling = manager.build(
        manager.flows, kind, FlowConfig(dim=4, width=8, kind=kind), 0, generator=torch.Generator().manual_seed(0)
    )
    assert type(coupling) is COUPLINGS[kind]


def test_register_concept_sources_makes_a_source_available():
    def register_concept_sources(register):
        register("mine", lambda data, *, seed: (len(data), seed))

    manager, _ = load(Plugin(register_concept_sources=register_concept_sources))
    assert manager.build(manager.concept_sources, "mine", [1, 2, 3], seed=4) == (3, 4)


def test_register_datasets_makes_a_data_set_available():
    def register_datasets(register):
        register("mine", lambda root, *, train, seed: [(torch.full((1, 8, 8), 0.5), seed)], image_size=8)

    manager, _ = load(Plugin(register_datasets=register_datasets))
    assert manager.build_dataset("mine", seed=9)[0][1] == 9


def test_register_image_metrics_makes_a_metric_available():
    def register_image_metrics(register):
        register("l1", lambda: lambda a, b: (a - b).abs().flatten(1).mean(1), higher_is_better=False)

    manager, _ = load(Plugin(register_image_metrics=register_image_metrics))
    metric = manager.build(manager.image_metrics, "l1")
    assert metric(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)).tolist() == [1, 1]


def test_register_analyses_makes_an_analysis_available():
    def register_analyses(register):
        register("count", lambda: lambda interpreter, data, *, seed: {"n": len(data)}, needs=["t"])

    manager, _ = load(Plugin(register_analyses=register_analyses))
    assert manager.build(manager.analyses, "count")(None, [1, 2], seed=0) == {"n": 2}


def hello(name, text):
    def register_commands(cli):
        cli.command(name)(lambda: click.echo(text))

    return Plugin(register_commands=register_commands)


def test_register_commands_adds_commands_beside_the_built_in_ones():
    manager, warned = load(hello("hello", "hi"))
    cli = click.Group("posthoc-inn", {"fit": click.Command("fit")})
    manager.register_commands(cli)
    assert sorted(cli.commands) == ["fit", "hello"]
    assert CliRunner().invoke(cli, ["hello"]).output == "hi\n"
    assert warned == []


@pytest.mark.parametrize("made_on_demand", [True, False])
def test_register_commands_does_not_replace_a_built_in_command(made_on_demand):
    manager, warned = load(hello("fit", "not the real fit"))
    fit = click.Command("fit")
    cli = click.Group("posthoc-inn", {} if made_on_demand else {"fit": fit})
    manager.register_commands(cli, taken=["fit"] if made_on_demand else [])
    manager.register_commands(cli, taken=["fit"] if made_on_demand else [])
    assert cli.commands.get("fit") in (None, fit)
    assert len(warned) == 1
    assert "mine-0 adds the command 'fit', which posthoc-inn has itself" in warned[0]


def test_register_commands_of_two_plugins_with_one_name_is_an_error_when_it_is_run():
    manager, _ = load(hello("hello", "a"), hello("hello", "b"))
    cli = click.Group("posthoc-inn")
    manager.register_commands(cli)
    with pytest.raises(DuplicateNameError, match="command 'hello' is registered by both mine-0 and mine-1"):
        CliRunner().invoke(cli, ["hello"], catch_exceptions=False)


@pytest.mark.parametrize("hook", ["fit_started", "fit_stage_finished", "fit_finished", "fit_failed"])
def test_fit_started_fit_stage_finished_fit_finished_and_fit_failed_reach_every_listener(hook):
    seen = []

    def broken(event):
        raise RuntimeError("the listener's own fault")

    def listener(event):
        seen.append((event.stage, event.out, dict(event.info)))

    manager, warned = load(Plugin(**{hook: broken}), Plugin(**{hook: listener}))
    getattr(manager, hook)(FitEvent("t", "out", {"seconds": 1}))
    assert seen == [("t", "out", {"seconds": 1})]
    assert warned == [f"The plugin mine-0 failed in {hook}: RuntimeError: the listener's own fault"]
    for other in {"fit_started", "fit_finished"} - {hook}:
        getattr(manager, other)(FitEvent("fit"))
    assert len(seen) == 1


def test_an_event_does_not_swallow_ctrl_c():
    def listener(event):
        raise KeyboardInterrupt

    manager, _ = load(Plugin(fit_started=listener))
    with pytest.raises(KeyboardInterrupt):
        manager.fit_started(FitEvent("fit"))


def test_an_implementation_may_take_fewer_arguments():
    seen = []
    manager, _ = load(Plugin(fit_started=lambda: seen.append(1)))
    manager.fit_started(FitEvent("fit"))
    assert seen == [1]
