"""The torchvision plugin's networks: any classifier, any weights, nothing downloaded unasked."""

import urllib.error

import pytest
import torch
from safetensors.torch import save_file

from posthoc_inn.errors import DataError, UnknownNameError
from posthoc_inn.plugins import PluginManager
from posthoc_inn.weights import seeded_init

torchvision = pytest.importorskip("torchvision")
plugin = pytest.importorskip("posthoc_inn_torchvision")

from posthoc_inn_torchvision import backbones  # noqa: E402


@pytest.fixture(scope="module")
def manager():
    manager = PluginManager([])
    manager.load()
    manager.register(plugin, distribution="posthoc-inn-torchvision")
    return manager


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("the tests have no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse, raising=False)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def squeezenet(classes, seed=1):
    with seeded_init(seed):
        return torchvision.models.squeezenet1_1(num_classes=classes)


def test_the_papers_networks_are_listed(manager):
    papers = {"alexnet", "resnet18", "resnet50", "resnet101", "squeezenet1_0", "squeezenet1_1"}
    assert set(manager.backbones.names()) >= papers


@pytest.mark.parametrize("name", sorted(plugin.LISTED))
def test_the_layers_worth_looking_at_exist(manager, name):
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    layers = manager.backbones.get(name).metadata["layers"]
    assert len(layers) > 5
    for layer in layers:
        model.get_submodule(layer)


def test_every_classifier_of_torchvision_has_a_name_and_a_specification(manager):
    names = backbones.classifier_names()
    assert len(names) >= 80
    for name in names:
        spec = manager.image_spec(f"torchvision:{name}")
        assert spec.size[0] >= 64
        assert 0.5 < spec.crop <= 1


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("fasterrcnn_resnet50_fpn", "detection"),
        ("fcn_resnet50", "segmentation"),
        ("r3d_18", "video"),
        ("raft_small", "optical flow"),
        ("quantized_resnet18", "quantization"),
    ],
)
def test_models_for_other_tasks_are_refused_with_the_reason(manager, name, task):
    with pytest.raises(UnknownNameError, match=f"'{name}' is a {task} model.*image classifiers only"):
        manager.build_backbone(f"torchvision:{name}")


def test_an_unknown_name_lists_the_nearest(manager):
    with pytest.raises(UnknownNameError, match="Did you mean 'torchvision:convnext_tiny'"):
        manager.build_backbone("torchvision:convnext_tinny")
    with pytest.raises(
        UnknownNameError, match=r"no backbone 'convnext_tiny'. Did you mean 'torchvision:convnext_tiny'"
    ):
        manager.build_backbone("convnext_tiny")


def test_random_weights_are_the_same_at_every_call_and_leave_the_global_generator_alone(manager):
    before = torch.get_rng_state()
    a, b = (manager.build_backbone("squeezenet1_1", num_classes=10) for _ in range(2))
    assert same(a.state_dict(), b.state_dict())
    assert torch.equal(torch.get_rng_state(), before)
    assert not a.training
    assert a(torch.zeros(1, 3, 28, 28)).shape == (1, 10)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5", "googlenet"])
def test_other_classifiers_are_built_by_name(manager, name):
    model = manager.build_backbone(f"torchvision:{name}", num_classes=5)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_local_file_brings_its_number_of_classes(manager, tmp_path, suffix):
    trained = squeezenet(7)
    path = str(tmp_path / f"net{suffix}")
    state = trained.state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state, "epoch": 1}, path)
    loaded = manager.build_backbone("squeezenet1_1", weights=path)
    assert same(loaded.state_dict(), state)
    assert not loaded.training


def test_another_number_of_classes_than_the_files_is_an_error(manager, tmp_path):
    path = str(tmp_path / "net.safetensors")
    save_file(squeezenet(7).state_dict(), path)
    with pytest.raises(DataError, match=r"classifier\.1\.weight is \(7, 512, 1, 1\) in the file, \(10, 512, 1, 1\)"):
        manager.build_backbone("squeezenet1_1", weights=path, num_classes=10)
    with pytest.raises(DataError, match=r"do not fit the ResNet.*are missing"):
        manager.build_backbone("resnet18", weights=path)


def test_a_file_with_auxiliary_heads_is_loaded_whole(manager, tmp_path):
    with seeded_init(1):
        trained = torchvision.models.googlenet(num_classes=4, aux_logits=True, init_weights=False)
    path = str(tmp_path / "net.pth")
    torch.save(trained.state_dict(), path)
    assert same(manager.build_backbone("torchvision:googlenet", weights=path).state_dict(), trained.state_dict())


def test_the_names_of_old_densenet_files_are_understood(manager, tmp_path):
    with seeded_init(1):
        trained = torchvision.models.densenet121(num_classes=3).state_dict()
    old = {}
    for name, tensor in trained.items():
        head, dot, tail = name.rpartition("denselayer")
        for kind in ("norm", "conv"):
            tail = tail.replace(f".{kind}1.", f".{kind}.1.").replace(f".{kind}2.", f".{kind}.2.")
        old[head + dot + tail] = tensor
    assert any(".norm.1." in name for name in old)
    torch.save(old, tmp_path / "densenet.pth")
    loaded = manager.build_backbone("torchvision:densenet121", weights=str(tmp_path / "densenet.pth"))
    assert same(loaded.state_dict(), trained)


def test_published_weights_bring_their_own_specification(manager):
    assert manager.image_spec("resnet50", weights="IMAGENET1K_V2").crop == pytest.approx(224 / 232)
    assert manager.image_spec("resnet50", weights="IMAGENET1K_V1").crop == pytest.approx(224 / 256)
    assert manager.image_spec("torchvision:vit_h_14", weights="IMAGENET1K_SWAG_E2E_V1").size == (518, 518)
    spec = manager.image_spec("squeezenet1_1", image_size=28)
    assert (spec.size, spec.crop, spec.mean) == ((28, 28), 1.0, (0.485, 0.456, 0.406))


@pytest.mark.parametrize(
    "weights", ["IMAGENET1K_V1", "imagenet1k_v1", "DEFAULT", "SqueezeNet1_1_Weights.IMAGENET1K_V1"]
)
def test_published_weights_are_found_by_name(weights):
    found = backbones.published_weights("squeezenet1_1", weights)
    assert found is torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1


def test_unknown_published_weights_list_those_there_are(manager):
    with pytest.raises(UnknownNameError, match=r"no weights 'V1' for squeezenet1_1\. .*IMAGENET1K_V1"):
        manager.build_backbone("squeezenet1_1", weights="V1")


def test_without_a_network_published_weights_fail_in_one_clear_line(manager, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        DataError,
        match=r"SqueezeNet1_1_Weights\.IMAGENET1K_V1 could not be had from https://.*URLError.*"
        r"nothing was downloaded.*pass a local file",
    ):
        manager.build_backbone("squeezenet1_1", weights="DEFAULT")
    assert not list(tmp_path.rglob("*.pth"))


def test_published_weights_are_loaded_without_running_code(manager, monkeypatch):
    seen = {}

    def download(self, **options):
        seen.update(options)
        return squeezenet(1000).state_dict()

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", download)
    model = manager.build_backbone("squeezenet1_1", weights="DEFAULT")
    assert seen["weights_only"] is True
    assert seen["check_hash"] is True
    assert same(model.state_dict(), squeezenet(1000).state_dict())
