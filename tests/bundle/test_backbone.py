"""What a stranger's bundle can make of the network that it names: nothing larger than its files, and no download."""

from __future__ import annotations

import pytest
import torch
from bundle_helpers import document, make_bundle, write_document
from torch import nn

from posthoc_inn.builtin.small_cnn import small_cnn
from posthoc_inn.bundle import backbone, load_bundle, modules, save_bundle
from posthoc_inn.bundle.allocation import TooLargeError, bounded
from posthoc_inn.bundle.backbone import rebuild_backbone
from posthoc_inn.errors import BundleError, DataError
from posthoc_inn.plugins import PluginManager, hookimpl


class Networks:
    """A plugin whose networks say where, and with which weights, they were built."""

    def __init__(self):
        self.built = []

    def plain(self, *, weights, num_classes):
        self.built.append((torch.empty(0).device.type, weights))
        return nn.Linear(2, num_classes or 3)

    def needs_memory(self, *, weights, num_classes):
        self.built.append((torch.empty(0).device.type, weights))
        float(torch.ones(1).sum())  # fails on the meta device
        return nn.Linear(1000, num_classes or 3)

    def greedy(self, config):
        return self.needs_memory(weights=None, num_classes=10**6)

    @hookimpl
    def register_autoencoders(self, register):
        register("greedy", self.greedy)

    @hookimpl
    def register_backbones(self, register):
        register("plain", self.plain)
        register("needs-memory", self.needs_memory)


@pytest.fixture
def networks(monkeypatch):
    plugin, manager = Networks(), PluginManager([])
    manager.load()
    manager.register(plugin, distribution="theirs")
    monkeypatch.setattr(backbone, "get_plugin_manager", lambda: manager)
    return plugin


def saved_with(tmp_path, model, *, stored, **origin):
    state = model.state_dict() if stored else None
    return save_bundle(make_bundle(model, origin=origin), tmp_path / "run", model_state=state)


def rebuilt(run, weights=None):
    return rebuild_backbone(load_bundle(run), run, weights)


@pytest.mark.parametrize("stored", [True, False])
def test_the_network_comes_back_with_its_weights(tmp_path, stored):
    model = small_cnn(num_classes=4)
    if stored:
        nn.init.normal_(model.head.weight)
    run = saved_with(tmp_path, model, stored=stored, backbone="small_cnn", num_classes=4)
    assert load_bundle(run).is_for(rebuilt(run))


@pytest.mark.parametrize("origin", [{"num_classes": 10**6}, {"backbone": "small_cnn"}, {"num_classes": 4}])
@pytest.mark.parametrize("stored", [True, False])
def test_another_network_than_the_one_described_is_never_allocated(tmp_path, networks, origin, stored):
    run = saved_with(tmp_path, nn.Linear(2, 3), stored=stored, **{"backbone": "plain"} | origin)
    with pytest.raises(BundleError, match=r"is not the one it was fitted to: its .* is float32 .* bundle.json says"):
        rebuilt(run)
    assert all(device == "meta" for device, _ in networks.built)


def test_a_description_that_was_forged_too_is_refused_by_the_file_itself(tmp_path, networks):
    run = saved_with(tmp_path, nn.Linear(2, 3), stored=True, backbone="plain", num_classes=10**6)
    content = document(run)
    content["model"]["tensors"] = {"weight": "float32 (1000000, 2) 0", "bias": "float32 (1000000,) 0"}
    write_document(run, content)
    with pytest.raises(BundleError, match=r"weight is float32 \(1000000, 2\), the file of its weights holds"):
        rebuilt(run)
    assert networks.built == [("meta", None)]


def test_a_network_that_needs_memory_to_be_built_is_bounded_by_counting(tmp_path, networks):
    fits, large = nn.Linear(1000, 3), 10**8
    run = saved_with(tmp_path, fits, stored=True, backbone="needs-memory", num_classes=3)
    assert load_bundle(run).is_for(rebuilt(run))
    content = document(run)
    content["origin"]["num_classes"] = 10**6
    write_document(run, content)
    with pytest.raises(BundleError, match="far larger than its weights, of 12,012 bytes"):
        rebuilt(run)
    with bounded(large), pytest.raises(TooLargeError, match="of at most 100,000,000"):
        nn.Linear(1000, 10**6)


def test_a_large_network_with_random_weights_needs_the_users_word(tmp_path, networks, monkeypatch):
    monkeypatch.setattr(backbone, "UNASKED", 10)
    run = saved_with(tmp_path, nn.Linear(2, 3), stored=False, backbone="plain", weights="none")
    with pytest.raises(DataError, match=r"36 bytes, of at most 10\).*--weights none"):
        rebuilt(run)
    assert networks.built == [("meta", None)]
    rebuilt(run, "none")
    assert networks.built[-1] == ("cpu", None)


@pytest.mark.parametrize("named", ["DEFAULT", "pretrained", "train", "x\x1b[2J" * 50])
def test_published_weights_are_fetched_by_the_users_word_alone(tmp_path, networks, named):
    run = saved_with(tmp_path, nn.Linear(2, 3), stored=False, backbone="plain", weights=named)
    with pytest.raises(DataError, match=r"which it does not hold. Pass them: --weights") as caught:
        rebuilt(run)
    assert networks.built == []
    assert str(caught.value).isprintable()
    rebuilt(run, "DEFAULT")
    assert networks.built[-1] == ("cpu", "DEFAULT")


def test_a_users_file_and_word_do_not_pay_for_a_strangers_number_of_classes(tmp_path, networks):
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "own.pth")
    run = saved_with(tmp_path, nn.Linear(2, 3), stored=False, backbone="plain", num_classes=10**6, weights="own.pth")
    for weights, told in ((str(tmp_path / "own.pth"), "far larger than its weights"), ("DEFAULT", "far more classes")):
        networks.built.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(backbone, "allowance", lambda size: 4 * size)
            with pytest.raises(BundleError, match=told):
                rebuilt(run, weights)
        assert {device for device, _ in networks.built} == {"meta"}


def test_a_registered_autoencoder_that_needs_memory_is_bounded_by_counting(tmp_path, networks, monkeypatch):
    run = save_bundle(make_bundle(), tmp_path / "run")
    content = document(run)
    content["autoencoder"]["config"]["kind"] = "greedy"
    write_document(run, content)
    monkeypatch.setattr(modules, "get_plugin_manager", backbone.get_plugin_manager)
    with pytest.raises(BundleError, match=r"The autoencoder that bundle\.json .* far larger than the file"):
        load_bundle(run)
    assert networks.built == [("meta", None), ("cpu", None)]


def test_a_tensor_that_the_description_lacks_is_told(tmp_path):
    run = saved_with(tmp_path, small_cnn(), stored=True, backbone="small_cnn")
    content = document(run)
    content["model"]["tensors"].pop("head.bias")
    write_document(run, content)
    with pytest.raises(BundleError, match=r"head.bias is float32 \(10,\), bundle.json says none"):
        rebuilt(run)
