"""Each plugin hook, from an installed distribution to what a user gets, in Python and on the command line.

The example plugin implements all of them. `test_third_party.py` installs it for real.
"""

import json
from pathlib import Path

import pytest
import torch
from small_parts import TINY

from posthoc_inn import Interpreter, config
from posthoc_inn.cli.main import main
from posthoc_inn.config import AutoencoderConfig
from posthoc_inn.errors import DataError
from posthoc_inn.images import BatchSource
from posthoc_inn.plugins import get_plugin_manager, hook_names

EXAMPLE = Path(__file__).parents[2] / "examples" / "posthoc-inn-example-plugin"


@pytest.fixture(scope="module")
def manager(tmp_path_factory):
    """The process's manager, with the example plugin as the one that is installed."""
    site = tmp_path_factory.mktemp("site")
    info = site / "posthoc_inn_example-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: posthoc-inn-example\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[posthoc_inn]\nexample = posthoc_inn_example\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        patch.syspath_prepend(str(EXAMPLE))
        patch.setenv("POSTHOC_INN_PLUGINS", "posthoc-inn-example")
        get_plugin_manager.cache_clear()
        yield get_plugin_manager()
    get_plugin_manager.cache_clear()


def interpreter_of(manager, **options):
    autoencoder = AutoencoderConfig(kind="linear", size=28, channels=3, latent_dim=8, width=8)
    options = {"preset": TINY, "autoencoder": autoencoder, "precision": "32", **options}
    return Interpreter(
        manager.build_backbone("stripe-net"), "features.3", spec=manager.image_spec("stripe-net"), **options
    )


def stripes(manager, train=True):
    return manager.build_dataset("stripes", train=train, seed=1, count=96)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def fitted(manager, out):
    """A fit in which everything that a plugin can bring is the plugin's; not to be changed."""
    return interpreter_of(manager).fit(
        stripes(manager),
        held_out=stripes(manager, train=False),
        concepts="same-color",
        image_metrics=("color-distance", "ssim"),
        out=out,
        progress=False,
    )


def command_line(*arguments):
    """Run the command line in this process, at tiny sizes, until it ends well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(config.PRESETS, "default", TINY)
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
    assert not exit_.value.code


@pytest.fixture
def ask(manager, capsys):
    """Return a function that runs a command in this process and gives what it prints, read as JSON."""

    def run(*arguments):
        capsys.readouterr()
        command_line(*arguments, "--json")
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture(scope="module")
def run(manager, tmp_path_factory):
    """A run of the command line in which everything is the plugin's; not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "stripes"
    command_line(
        "fit",
        *("--backbone", "stripe-net", "--weights", "none", "--layer", "features.3"),
        *("--data", "stripes", "--data-option", "count=96", "--autoencoder", "linear"),
        *("--concepts", "same-color", "--concept-option", "neighbors=3"),
        *("--image-metric", "color-distance", "--precision", "32", "--out", out, "--quiet"),
    )
    return out


def metrics_of(run):
    return json.loads((run / "metrics.json").read_text())


def events(out):
    lines = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    return [(line["event"], line["stage"]) for line in lines]


def test_the_example_implements_every_hook(manager):
    (example,) = [p for p in manager.plugins() if p["distribution"] == "posthoc-inn-example"]
    assert (example["status"], example["error"]) == ("loaded", "")
    assert example["hooks"] == hook_names()
    assert {kind for kind in example["registered"]} == {r.kind for r in manager.registries.values()} | {"command"}


def test_register_backbones_gives_the_network_that_is_explained(manager, fitted):
    assert type(fitted.model).__module__ == "posthoc_inn_example.backbone"
    images = BatchSource(stripes(manager)).first(3)
    z = fitted.extractor.features(fitted.adapter_.to_model(images))
    assert z.shape == (3, *fitted.probe_.z_shape)
    assert fitted.sample(images, n=2).shape == (3, 2, 3, 28, 28)


def test_register_backbones_gives_a_network_to_the_command_line(ask, run):
    layers = {layer["name"]: layer for layer in ask("layers", "--backbone", "stripe-net")["layers"]}
    assert layers["features.3"]["is_cut"] is True
    assert metrics_of(run)["model"]["name"] == "stripe-net"


def test_register_datasets_gives_the_images_of_the_fit(fitted):
    assert fitted.metrics_["images"].items() >= {"train": 96, "held_out": 24}.items()


def test_register_datasets_gives_images_and_their_options_to_the_command_line(run):
    assert metrics_of(run)["images"].items() >= {"train": 96, "held_out": 24}.items()


def test_register_autoencoders_gives_an_autoencoder_that_is_trained_saved_and_loaded(manager, fitted, tmp_path):
    assert type(fitted.autoencoder_).__module__ == "posthoc_inn_example.autoencoder"
    fresh = manager.build(manager.autoencoders, "linear", fitted.autoencoder_.config)
    assert not torch.equal(fresh.back.weight, fitted.autoencoder_.back.weight)
    assert fitted.autoencoder_history_.rows[-1]["step"] == 8
    fitted.save(tmp_path / "bundle")
    loaded = Interpreter.load(tmp_path / "bundle", model=fitted.model)
    assert type(loaded.autoencoder_) is type(fitted.autoencoder_)
    images = BatchSource(stripes(manager)).first(3)
    assert torch.equal(loaded.sample(images, n=2, seed=3), fitted.sample(images, n=2, seed=3))


def test_register_autoencoders_gives_an_autoencoder_to_the_command_line(run):
    assert json.loads((run / "bundle" / "bundle.json").read_text())["autoencoder"]["config"]["kind"] == "linear"
    assert metrics_of(run)["training"]["autoencoder"]["rows"][-1]["step"] == 8


def test_register_flows_gives_the_coupling_of_t_that_is_fitted_saved_and_loaded(manager, tmp_path):
    preset = TINY.replace(flow=TINY.flow.replace(kind="additive"))
    data = stripes(manager)
    fitted = interpreter_of(manager, preset=preset).fit(data, progress=False, evaluate=False)
    couplings = [c for block in fitted.flow_.flow.blocks for c in block.couplings]
    assert {type(c).__module__ for c in couplings} == {"posthoc_inn_example.coupling"}
    images = BatchSource(data).first(3)
    fitted.save(tmp_path / "bundle")
    loaded = Interpreter.load(tmp_path / "bundle", model=fitted.model)
    assert torch.equal(loaded.sample(images, n=2, seed=3), fitted.sample(images, n=2, seed=3))


def test_register_concept_sources_gives_the_pairs_that_e_learns_from(fitted):
    assert fitted.concept_model_.names == ("color", "(random)")
    assert set(fitted.metrics_["concepts"]["scores"]) >= {"color"}
    assert fitted.relevance_.to_dict()


def test_register_concept_sources_gives_concepts_to_the_command_line(run):
    assert metrics_of(run)["concepts"]["names"] == ["color", "(random)"]


def test_register_image_metrics_gives_figures_among_the_metrics(fitted):
    measured = fitted.metrics_["autoencoder"]["image_metrics"]
    assert list(measured) == ["color-distance", "ssim"]
    assert measured["color-distance"]["value"] > 0
    assert measured["color-distance"]["standard_error"] > 0
    assert [m["higher_is_better"] for m in measured.values()] == [False, True]


def test_register_image_metrics_gives_figures_to_the_command_line(run):
    measured = metrics_of(run)["autoencoder"]["image_metrics"]
    assert list(measured) == ["color-distance"]
    assert measured["color-distance"]["value"] > 0


def test_register_image_metrics_gives_a_metric_that_tells_colors_apart(manager):
    from posthoc_inn.analysis.image_metrics import measure_image_metrics

    images = BatchSource(stripes(manager)).first(8)
    same = measure_image_metrics(["color-distance"], images, images.flip(-1))["color-distance"]["value"]
    other = measure_image_metrics(["color-distance"], images, images.roll(1, 0))["color-distance"]["value"]
    assert same == pytest.approx(0, abs=1e-6)
    assert other > 0.1


def test_register_analyses_gives_an_analysis_by_its_name(manager, fitted):
    found = fitted.analyze("color-kept", stripes(manager, train=False), images=6, samples=2)
    assert found.images == 6
    assert found.to_dict() == {"samples": found.samples, "others": found.others, "images": 6}
    assert found.samples > 0
    assert found.figure().axes
    assert f"{found.others:.3f}" in found.caption


def test_register_analyses_gives_an_analysis_to_the_command_line(ask, run, tmp_path):
    listed = {row["name"]: row for row in ask("analyze", "--bundle", run, "--list")}
    assert listed["color-kept"]["allowed"] is True
    data = ("--data", "stripes", "--data-option", "count=96")
    own = ("--option", "color-kept.images=5", "--option", "color-kept.samples=2")
    found = ask("analyze", "color-kept", "--bundle", run, *data, *own, "--out", tmp_path)["Color kept"]
    assert found["images"] == 5
    assert found["samples"] > 0
    page = (tmp_path / "analysis.html").read_text()
    assert "data:image/png;base64" in page
    assert "It says nothing of where in the picture a colour is." in page


def test_register_commands_gives_a_command_that_runs_and_is_in_the_help(ask, capsys):
    assert sum(ask("stripes", "--count", "6")["orientations"].values()) == 6
    command_line("--help")
    assert "Draw striped pictures." in capsys.readouterr().out


def test_fit_started_fit_stage_finished_and_fit_finished_are_told_in_order(fitted, out):
    assert events(out) == [
        ("started", "fit"),
        ("stage finished", "autoencoder"),
        ("stage finished", "e"),
        ("stage finished", "t"),
        ("finished", "fit"),
    ]


def test_fit_started_fit_stage_finished_and_fit_finished_are_told_on_the_command_line_too(fitted, out, run):
    assert events(run) == events(out)


def test_fit_failed_is_told_with_the_reason(manager, tmp_path):
    class Damaged(torch.utils.data.Dataset):
        def __len__(self):
            return 300

        def __getitem__(self, index):
            if index == 290:
                raise DataError("image 290 cannot be read")
            return torch.rand(3, 28, 28, generator=torch.Generator().manual_seed(index))

    with pytest.raises(DataError, match="image 290 cannot be read"):
        interpreter_of(manager).fit(Damaged(), held_out=stripes(manager, train=False), out=tmp_path, progress=False)
    assert events(tmp_path) == [("started", "fit"), ("failed", "fit")]
    last = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-1])
    assert last["error"].startswith("DataError:")
    assert "image 290 cannot be read" in last["error"]
