from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from posthoc_inn import Interpreter
from posthoc_inn.builtin.small_cnn import SmallCNN
from posthoc_inn.bundle import load_bundle
from posthoc_inn.cli.fit import options as fit_options
from posthoc_inn.cli.fit.options import FitOptions, choose
from posthoc_inn.errors import ConfigError
from posthoc_inn.plugins import PluginManager, get_plugin_manager


def test_a_run_leaves_bundle_metrics_pictures_and_report(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {"bundle", "checkpoints", "fit.json", "metrics.json", "report.html", "samples.png"}
    metrics = json.loads((finished / "metrics.json").read_text())
    assert {"likelihood", "faithfulness", "autoencoder", "explained_by_invariances", "model", "seconds"} <= set(metrics)
    assert metrics["seconds"]["classifier"] > 0
    assert metrics["training"]["classifier"]["rows"][-1]["step"] == 8
    with Image.open(finished / "samples.png") as picture:
        assert picture.width > picture.height > 50
    assert json.loads((finished / "fit.json").read_text())["finished"] is True


def test_the_trained_model_travels_in_the_bundle(finished):
    origin = load_bundle(finished / "bundle").origin
    assert (origin["backbone"], origin["weights"], origin["classes"]) == ("small_cnn", "train", ["nought", "one"])
    assert (finished / "bundle" / "model.safetensors").exists()


def test_nothing_of_this_machine_is_in_the_bundle(finished, pictures):
    for name in ("bundle.json", "metrics.json", "README.md"):
        assert str(pictures.parent) not in (finished / "bundle" / name).read_text()


def test_the_plan_and_the_table_are_told(ask, pictures, quick, tmp_path):
    answer = ask("fit", *quick, "--data", pictures, "--out", tmp_path / "run", "--steps", "3", "--seed", "5")
    assert answer.code == 0, answer.err
    for part in (
        "36 images to learn from, 4 held out, 2 classes",
        "trained here first, 8 steps of 16",
        "layer        pool: z has shape 128×1×1",
        "3 steps of 16",
        "minutes for the model",
        "Same prediction as the image",
        "report.html",
    ):
        assert part in answer.out, part
    assert "1/8 reading labelled images" in answer.err
    assert "8/8 writing bundle and report" in answer.err


def test_json_is_all_that_json_prints(ask, pictures, quick, tmp_path):
    answer = ask("fit", *quick, "--data", pictures, "--out", tmp_path / "run", "--json", "--quiet", "--refits", 1)
    assert answer.code == 0, answer.err
    assert answer.err == ""
    told = answer.json
    assert told["figures"]["refits"]["trainings"] == 2
    assert Path(told["report"]).exists()
    assert told["figures"]["layer"] == "pool"
    assert {f["status"] for f in told["findings"]} <= {"good", "fair", "poor", "info"}


def test_a_finished_run_is_shown_again_and_not_repeated(ask, finished):
    before = (finished / "report.html").stat().st_mtime_ns
    answer = ask("fit", "--out", finished, "--resume")
    assert answer.code == 0
    assert "is finished already" in answer.out
    assert (finished / "report.html").stat().st_mtime_ns == before


def test_an_existing_run_is_not_replaced_unasked(ask, finished):
    answer = ask("fit", "--out", finished)
    assert answer.code == 1
    assert "add --overwrite" in answer.err


def test_resuming_with_another_option_names_it(ask, finished):
    answer = ask("fit", "--out", finished, "--resume", "--seed", "4", "--layer", "pool")
    assert answer.code == 1
    assert "--seed (was 0, now 4)" in answer.err
    assert "--layer" not in answer.err


def test_a_mistake_does_not_cost_the_run_that_is_there(ask, finished, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    answer = ask("fit", "--out", out, "--overwrite", "--layer", "nowhere")
    assert answer.code == 1
    assert (out / "report.html").exists()


def test_resuming_where_nothing_is_starts_and_says_so(ask, tmp_path):
    answer = ask("fit", "--out", tmp_path / "new", "--resume", "--layer", "nowhere")
    assert "Nothing in" in answer.err
    assert not (tmp_path / "new").exists()


def test_all_problems_of_the_options_are_told_at_once(ask, tmp_path):
    answer = ask(
        "fit", "--backbone", "a", "--model", "b", "--epochs", "1", "--steps", "2", "--mean", "0.5", "--device", "gpu",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert answer.code == 1
    assert answer.err.count("\n") == 1
    for part in ("not both", "PACKAGE.MODULE:FACTORY", "--epochs or --steps", "--mean and --std go together", "'gpu'"):
        assert part in answer.err


def test_all_wrong_names_are_told_at_once():
    options = FitOptions(backbone="squeezenet9", data="colour-digits", autoencoder="konv", weights="none", layer="a")
    with pytest.raises(ConfigError, match=r"'squeezenet9'.*'colour-digits'.*'color-digits'.*'konv'"):
        choose(options, get_plugin_manager())


def test_random_weights_have_to_be_asked_for(pictures):
    with pytest.raises(ConfigError, match=r"needs --weights: a file.*none \(random weights, on purpose\)"):
        choose(FitOptions(backbone="small_cnn", data=str(pictures)), get_plugin_manager())


def test_a_backbone_without_layer_lists_those_worth_looking_at():
    with pytest.raises(ConfigError, match=r"--layer is missing\. Worth looking at: .*layer4"):
        choose(FitOptions(backbone="resnet18", weights="none"), get_plugin_manager())


def test_without_options_squeezenet_is_trained_on_the_embedded_digits():
    choice = choose(FitOptions(), get_plugin_manager())
    assert (choice.backbone, choice.weights, choice.layer) == ("squeezenet1_1", "train", "features.11")
    assert (choice.data, choice.draws) == ("color-digits", fit_options.EMBEDDED_DRAWS)
    assert choice.notes == ()


def test_without_the_torchvision_plugin_a_built_in_network_stands_in_and_that_is_told():
    manager = PluginManager(entry_points=[])
    manager.load()
    choice = choose(FitOptions(), manager)
    assert (choice.backbone, choice.layer) == ("small_cnn", "stage3")
    assert "stands in for SqueezeNet" in choice.notes[0]


MY_NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 6, 3, 2), nn.ReLU())
            self.head = nn.Linear(6 * 36, 2)
    def forward(self, x):
        return self.head(self.body(x).flatten(1))

def build():
    return Net()

def broken():
    raise OSError("no file net.pth")

number = 3
"""


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    (tmp_path / "my_nets_of_a_test.py").write_text(MY_NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "my_nets_of_a_test"


def test_a_model_of_the_users_own_is_imported_from_the_current_directory(ask, own_code, pictures):
    answer = ask(
        "fit", "--model", f"{own_code}:build", "--layer", "body.1", "--data", pictures, "--out", "run",
        "--mean", "0.5", "--std", "0.5", "--precision", "32", "--quiet", "--held-out", "0.25",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert "30 images to learn from, 10 held out" in answer.out
    adapter = load_bundle("run/bundle").adapter
    assert (adapter.spec.mean, adapter.normalization) == ((0.5,), None)
    again = ask("sample", "--bundle", "run", "--images", pictures / "one" / "00.png", "--out", "grid.png")
    assert again.code == 1
    assert "--model PACKAGE.MODULE:FACTORY" in again.err
    again = ask(
        "sample", "--bundle", "run", "--model", f"{own_code}:Net", "--images", pictures / "one" / "00.png", "-n", "2"
    )
    assert again.code == 0, again.err
    assert Path("samples.png").exists()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no_such_module:build", "cannot be imported (ModuleNotFoundError"),
        ("my_nets_of_a_test:bild", "Did you mean 'build'?"),
        ("my_nets_of_a_test:broken", "raised OSError: no file net.pth"),
        ("my_nets_of_a_test:number", "is a int; a function or class is needed"),
    ],
)
def test_a_factory_that_does_not_work_says_why_in_one_line(ask, own_code, pictures, name, told):
    answer = ask("fit", "--model", name, "--layer", "body.1", "--data", pictures, "--out", "run")
    assert answer.code == 1
    assert told in answer.err
    assert answer.err.count("\n") == 1
    assert not Path("run").exists()


def test_an_autoencoder_is_shared_from_a_run(ask, finished, pictures, quick, tmp_path):
    answer = ask("fit", *quick, "--data", pictures, "--out", tmp_path / "run", "--autoencoder", finished, "--quiet")
    assert answer.code == 0, answer.err
    assert "given, already trained" in answer.out
    mine, shared = (load_bundle(run / "bundle").autoencoder.state_dict() for run in (tmp_path / "run", finished))
    assert all(torch.equal(mine[name], shared[name]) for name in shared)


def test_weights_from_a_file_are_used_and_not_trained(ask, pictures, tmp_path):
    torch.save(SmallCNN(2).state_dict(), tmp_path / "net.pth")
    answer = ask(
        "fit", "--backbone", "small_cnn", "--weights", tmp_path / "net.pth", "--layer", "stage3", "--data", pictures,
        "--out", tmp_path / "run", "--quiet", "--json",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert answer.json["figures"]["model"]["weights"] == "net.pth"
    without = ask("sample", "--bundle", tmp_path / "run", "--images", pictures / "one", "--out", tmp_path / "a.png")
    assert without.code == 1
    assert "with the weights net.pth, which it does not hold" in without.err
    given = ask(
        "sample", "--bundle", tmp_path / "run", "--images", pictures / "one", "--out", tmp_path / "a.png",
        "--weights", tmp_path / "net.pth", "-n", "1",
    )  # fmt: skip
    assert given.code == 0, given.err


def test_a_model_that_cannot_take_the_images_says_so(ask, pictures, tmp_path):
    answer = ask(
        "fit", "--backbone", "alexnet", "--weights", "train", "--layer", "features.3", "--data", pictures, "--out",
        tmp_path / "run",
    )  # fmt: skip
    assert answer.code == 1
    assert answer.err.count("\n") == 1
    assert "--input-size" in answer.err
    assert not (tmp_path / "run").exists()


def test_images_without_classes_cannot_train_a_model(ask, pictures, quick, tmp_path):
    answer = ask("fit", *quick, "--data", pictures / "one", "--out", tmp_path / "run")
    assert answer.code == 1
    assert "one subfolder a class" in answer.err


def test_the_model_is_left_as_it_is(ask, pictures, own_code, monkeypatch):
    seen: list[nn.Module] = []

    import posthoc_inn.cli.models as models

    build = models.import_factory

    def remember(text):
        seen.append(build(text))
        before.update({k: v.clone() for k, v in seen[0].state_dict().items()})
        return seen[0]

    before: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(models, "import_factory", remember)
    answer = ask(
        "fit", "--model", f"{own_code}:build", "--layer", "body.1", "--data", pictures, "--out", "run", "--quiet"
    )
    assert answer.code == 0, answer.err
    assert "gets its images in [0, 1]" in answer.out
    assert all(torch.equal(value, before[name]) for name, value in seen[0].state_dict().items())
    assert all(p.grad is None for p in seen[0].parameters())


def test_a_loaded_run_has_the_metrics_that_stand_beside_its_bundle(finished):
    from posthoc_inn.builtin.small_cnn import small_cnn

    model = small_cnn(weights=str(finished / "bundle" / "model.safetensors"), num_classes=2)
    loaded = Interpreter.load(finished / "bundle", model=model)
    assert loaded.metrics_ == json.loads((finished / "metrics.json").read_text())
    assert "writing" in loaded.metrics_["seconds"]
