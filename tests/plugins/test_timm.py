"""The timm plugin: any model by name, its own data configuration, local weights."""

import pytest
import torch
from safetensors.torch import save_file

from posthoc_inn.errors import DataError, UnknownNameError
from posthoc_inn.plugins import PluginManager
from posthoc_inn.weights import seeded_init

timm = pytest.importorskip("timm")
plugin = pytest.importorskip("posthoc_inn_timm")


@pytest.fixture(scope="module")
def manager():
    manager = PluginManager([])
    manager.load()
    manager.register(plugin, distribution="posthoc-inn-timm")
    return manager


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_timms_own_data_configuration_is_the_specification(manager):
    spec = manager.image_spec("timm:vit_tiny_patch16_224")
    assert (spec.size, spec.mean, spec.std) == ((224, 224), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert (spec.interpolation, spec.crop) == ("bicubic", 0.9)
    assert manager.image_spec("timm:resnet18", image_size=32).size == (32, 32)


def test_a_sample_of_architectures_has_a_specification(manager):
    names = manager.backbones.open_ended_names("timm")
    assert len(names) > 1000
    for name in names[::40]:
        assert manager.image_spec(name).channels == 3


@pytest.mark.parametrize("name", ["timm:resnet10t", "timm:resnet18.a1_in1k", "timm:vit_tiny_patch16_224"])
def test_any_model_is_built_with_the_same_random_weights_at_every_call(manager, name):
    before = torch.get_rng_state()
    a, b = (manager.build_backbone(name, num_classes=3) for _ in range(2))
    assert same(a.state_dict(), b.state_dict())
    assert torch.equal(torch.get_rng_state(), before)
    assert not a.training


@pytest.mark.parametrize("name", ["resnet1818", "hf-hub:someone/model", "local-dir:/tmp", "resnet18.no_such_tag", ""])
def test_unknown_names_and_addresses_are_refused(manager, name):
    with pytest.raises(UnknownNameError, match=f"no backbone 'timm:{name}'"):
        manager.backbones.get(f"timm:{name}")


def test_an_unknown_name_lists_the_nearest(manager):
    with pytest.raises(UnknownNameError, match="Did you mean 'timm:resnet18'"):
        manager.backbones.get("timm:resnet_18")


def test_a_local_file_brings_its_number_of_classes(manager, tmp_path):
    with seeded_init(3):
        trained = timm.create_model("resnet10t", num_classes=4)
    path = str(tmp_path / "net.safetensors")
    save_file(trained.state_dict(), path)
    assert same(manager.build_backbone("timm:resnet10t", weights=path).state_dict(), trained.state_dict())
    with pytest.raises(DataError, match=r"fc\.weight is \(4, 512\) in the file, \(5, 512\) in the model"):
        manager.build_backbone("timm:resnet10t", weights=path, num_classes=5)


def test_pretrained_weights_are_fetched_only_when_asked_for_and_fail_in_one_line(manager, monkeypatch):
    asked = []
    create = timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            asked.append(name)
            raise OSError("no\nnetwork")
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    manager.build_backbone("timm:resnet10t")
    assert asked == []
    with pytest.raises(DataError, match=r"resnet10t could not be had \(OSError: no network\); nothing was downloaded"):
        manager.build_backbone("timm:resnet10t", weights="pretrained")
    assert asked == ["resnet10t"]


def test_pretrained_weights_are_not_cut_to_another_number_of_classes(manager):
    with pytest.raises(DataError, match="are for 1000 classes, got num_classes=10"):
        manager.build_backbone("timm:resnet10t", weights="pretrained", num_classes=10)


def test_other_names_of_weights_are_refused(manager):
    with pytest.raises(UnknownNameError, match="takes weights 'pretrained' or a local file, got 'DEFAULT'"):
        manager.build_backbone("timm:resnet10t", weights="DEFAULT")
