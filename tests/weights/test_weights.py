"""Weights from local files: found, checked, loaded whole or not at all, and never run."""

import argparse
import os
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from posthoc_inn.builtin.small_cnn import SmallCNN, small_cnn
from posthoc_inn.errors import DataError
from posthoc_inn.weights import infer_num_classes, is_weights_file, load_state, load_weights, seeded_init


def model(classes=3, seed=0):
    with seeded_init(seed):
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, classes))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".th", ".ckpt", ".bin"])
def test_a_file_of_weights_comes_back_as_it_was(tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    state = model(seed=1).state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    assert same(load_state(path), state)
    assert same(load_weights(model(), path).state_dict(), state)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"epoch": 3, "optimizer": {"lr": 0.1}, "model": s},
        lambda s: {"net": {"state_dict": s}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"module._orig_mod.{k}": v for k, v in s.items()}},
        lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}},
    ],
    ids=["state_dict", "model", "twice nested", "DataParallel", "compiled", "framework's prefix"],
)
def test_weights_are_found_however_the_training_script_wrapped_them(tmp_path, wrap):
    state = model(seed=1).state_dict()
    torch.save(wrap(state), tmp_path / "net.pth")
    assert same(load_weights(model(), tmp_path / "net.pth").state_dict(), state)


class Bomb:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return (Path.touch, (Path(self.canary),))


@pytest.mark.parametrize("how", ["torch", "torch legacy", "pickle", "beside weights"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_holds_code_is_refused_and_never_run(tmp_path, how, suffix):
    canary = tmp_path / "canary"
    path = tmp_path / f"evil{suffix}"
    bomb = Bomb(str(canary))
    if how == "pickle":
        path.write_bytes(pickle.dumps({"a": bomb}))
    else:
        content = {"state_dict": {"a": torch.ones(1)}, "x": bomb} if how == "beside weights" else bomb
        torch.save(content, path, _use_new_zipfile_serialization=how != "torch legacy")
    with pytest.raises(DataError, match=r"not a readable safetensors|run code, so it is not loaded.*safetensors"):
        load_state(path)
    assert not canary.exists()
    pickle.loads(pickle.dumps(bomb))
    assert canary.exists(), "the bomb of this test is a dud"


def test_a_training_scripts_arguments_are_named_as_what_is_in_the_way(tmp_path):
    torch.save({"state_dict": model().state_dict(), "args": argparse.Namespace(lr=1)}, tmp_path / "net.pth")
    with pytest.raises(DataError, match=r"it names argparse\.Namespace.*run code, so it is not loaded"):
        load_state(tmp_path / "net.pth")


def test_a_torchscript_archive_is_refused_as_a_program(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "net.pt")
    with pytest.raises(DataError, match="TorchScript archive, which is a program"):
        load_state(tmp_path / "net.pt")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, 0.999])
def test_a_file_cut_short_says_so(tmp_path, suffix, keep):
    path = tmp_path / f"net{suffix}"
    state = model().state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(DataError, match=r"net.*(cut short|not a readable)"):
        load_state(path)


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_raise_nothing_but_data_errors(tmp_path, seed):
    generator = torch.Generator().manual_seed(seed)
    for suffix in (".safetensors", ".pth"):
        path = tmp_path / f"net{suffix}"
        state = {"a": torch.ones(3), "b": torch.zeros(2, 2)}
        save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
        original = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(original)
            for position in torch.randint(len(damaged), (4,), generator=generator).tolist():
                damaged[position] = int(torch.randint(256, (), generator=generator))
            path.write_bytes(damaged)
            try:
                load_weights(nn.Linear(2, 2), path)
            except DataError:
                continue


def test_a_missing_file_a_directory_and_an_unknown_kind_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.pth is missing\. Pass a \.safetensors, .* or \.bin file"):
        load_state(tmp_path / "nowhere.pth")
    with pytest.raises(DataError, match="is a directory"):
        load_state(tmp_path)
    (tmp_path / "net.h5").write_bytes(b"")
    with pytest.raises(DataError, match=r"read from \.safetensors.*got .*net\.h5"):
        load_state(tmp_path / "net.h5")


@pytest.mark.parametrize(
    ("content", "found"),
    [({"epoch": 3, "lr": 0.1}, "'epoch', 'lr'"), ([1, 2], "list"), ({}, r"\(none\)"), (torch.ones(2), "Tensor")],
)
def test_a_file_without_weights_says_what_it_holds(tmp_path, content, found):
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(DataError, match=f"holds no weights: found .*{found}"):
        load_state(tmp_path / "net.pth")


def test_another_networks_weights_are_reported_and_leave_the_model_as_it_was(tmp_path):
    other = nn.Sequential(nn.Conv2d(3, 4, 5), nn.Identity(), nn.Identity(), nn.Identity(), nn.Linear(2, 2))
    torch.save(other.state_dict(), tmp_path / "net.pth")
    mine = model()
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    with pytest.raises(
        DataError,
        match=r"do not fit the Sequential: 6 of the model's 9 tensors are missing \(1\.weight.*and 2 more\); "
        r"2 are not the model's \(4\.weight, 4\.bias\); 1 have another shape "
        r"\(0\.weight is \(4, 3, 5, 5\) in the file, \(4, 3, 3, 3\) in the model\)",
    ):
        load_weights(mine, tmp_path / "net.pth")
    assert same(mine.state_dict(), before)


def test_old_files_without_batch_counters_are_accepted(tmp_path):
    state = {k: v for k, v in model(seed=1).state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "net.pth")
    loaded = load_weights(model(), tmp_path / "net.pth").state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_integers_where_the_model_has_reals_are_refused(tmp_path):
    torch.save({k: v.to(torch.int8) for k, v in nn.Linear(2, 2).state_dict().items()}, tmp_path / "net.pth")
    with pytest.raises(DataError, match=r"weight is torch\.int8 in the file, torch\.float32 in the model"):
        load_weights(nn.Linear(2, 2), tmp_path / "net.pth")


def test_weights_that_are_nan_are_refused(tmp_path):
    state = model().state_dict()
    state["3.bias"][1] = float("nan")
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(DataError, match=r"hold NaN \(3\.bias\)"):
        load_weights(model(), tmp_path / "net.pth")


def test_the_number_of_classes_is_read_from_the_weights():
    assert infer_num_classes(model, model(7).state_dict()) == 7
    assert infer_num_classes(model, {"something.else": torch.ones(7)}) is None
    assert infer_num_classes(lambda n: nn.Linear(2, 3), nn.Linear(2, 3).state_dict()) is None


def test_the_number_of_classes_is_read_even_if_the_network_needs_real_memory_to_be_built():
    def build(classes):
        width = int(torch.ones(3).sum())  # has no value on the meta device, as in torchvision's RegNets
        return nn.Linear(width, classes)

    before = torch.get_rng_state()
    assert infer_num_classes(build, {"weight": torch.ones(7, 3), "bias": torch.ones(7)}) == 7
    assert torch.equal(torch.get_rng_state(), before)


def test_initial_weights_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    assert same(model(seed=1).state_dict(), model(seed=1).state_dict())
    assert not same(model(seed=1).state_dict(), model(seed=2).state_dict())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("weights", "is_file"),
    [
        ("a.pth", True),
        ("A.SafeTensors", True),
        ("dir/a", True),
        ("DEFAULT", False),
        ("ResNet18_Weights.IMAGENET1K_V1", False),
    ],
)
def test_files_and_names_of_published_weights_are_told_apart(weights, is_file):
    assert is_weights_file(weights) is is_file


@pytest.mark.parametrize("size", [28, 32, 64])
def test_the_built_in_network_takes_the_images_it_is_meant_for(size):
    net = small_cnn(num_classes=5)
    images = torch.rand(2, 3, size, size)
    assert net(images).shape == (2, 5)
    assert not net.training
    assert sum(p.numel() for p in net.parameters()) < 400_000


def test_the_built_in_network_loads_its_own_file_with_its_number_of_classes(tmp_path):
    with seeded_init(5):
        trained = SmallCNN(num_classes=6)
    path = str(tmp_path / "cnn.safetensors")
    save_file(trained.state_dict(), path)
    assert same(small_cnn(weights=path).state_dict(), trained.state_dict())
    with pytest.raises(DataError, match=r"head\.weight is \(6, 128\) in the file, \(4, 128\) in the model"):
        small_cnn(weights=path, num_classes=4)
    assert os.path.getsize(path) > 0
