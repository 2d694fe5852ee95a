"""Other people's names and kinds of tensors: what torch takes is taken, the rest is refused for its real reason."""

import tarfile
import zipfile

import pytest
import torch
from safetensors.torch import save_model
from torch import nn
from torch.optim.swa_utils import AveragedModel

from posthoc_inn.errors import DataError
from posthoc_inn.weights import is_weights_file, load_into, load_state, load_weights, seeded_init


def network(seed=0):
    with seeded_init(seed):
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


class Shared(nn.Module):
    def __init__(self, seed):
        super().__init__()
        with seeded_init(seed):
            self.encoder, self.decoder = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.decoder.weight = self.encoder.weight


def test_one_of_two_tied_names_is_enough(tmp_path):
    trained, fresh = Shared(1), Shared(2)
    save_model(trained, str(tmp_path / "net.safetensors"))
    load_weights(fresh, tmp_path / "net.safetensors")
    assert same(fresh.state_dict(), trained.state_dict())
    assert fresh.decoder.weight is fresh.encoder.weight


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: under("model.", s) | {"loss.class_weight": torch.ones(3)},
        lambda s: under("lit.net.", s) | {"metric.hits": torch.ones(3), "step": torch.tensor(1)},
        lambda s: under("model.module._orig_mod.", s) | {"criterion.weight": torch.ones(3)},
        lambda s: {name.replace(".", "._orig_mod.", 1): tensor for name, tensor in s.items()},
        lambda s: AveragedModel(network(1)).state_dict(),
        lambda s: {**s, "epoch": 4, "note": "best", "extra": None},
    ],
    ids=["loss", "metric", "wrappers and loss", "compiled parts", "averaged", "numbers"],
)
def test_the_networks_entries_are_found_among_others(tmp_path, wrap):
    state = network(1).state_dict()
    torch.save(wrap(state), tmp_path / "net.pth")
    assert same(load_weights(network(), tmp_path / "net.pth").state_dict(), state)


def test_a_wrapped_model_takes_the_plain_networks_file(tmp_path):
    state = network(1).state_dict()
    torch.save(state, tmp_path / "net.pth")
    assert same(load_weights(nn.DataParallel(network()), tmp_path / "net.pth").module.state_dict(), state)


def test_two_networks_in_one_file_are_not_chosen_between(tmp_path):
    torch.save(
        under("teacher.", network(1).state_dict()) | under("student.", network(2).state_dict()), tmp_path / "n.pt"
    )
    with pytest.raises(DataError, match=r"more than one prefix \('teacher\.', 'student\.'\)"):
        load_weights(network(), tmp_path / "n.pt")


def test_a_part_of_a_large_network_is_not_taken_for_a_small_one():
    large = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2)).state_dict()
    with pytest.raises(DataError, match="do not fit the Linear"):
        load_into(nn.Linear(2, 2), large, source="large")


def test_names_that_torch_itself_renames_are_taken(tmp_path):
    with pytest.warns(FutureWarning, match="weight_norm"):
        old = nn.utils.weight_norm(nn.Linear(3, 3))
    new = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    load_into(new, old.state_dict(), source="old")
    assert torch.allclose(new.weight, old.weight)
    other = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(DataError, match=r"do not fit the ParametrizedLinear.*size mismatch"):
        load_into(other, old.state_dict(), source="old")
    assert same(other.state_dict(), before)


@pytest.mark.filterwarnings("ignore:.*(prototype|Sparse|quantiz).*")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: torch.eye(2).to_sparse(), "weight is sparse"),
        (lambda: torch.eye(2, device="meta"), "weight is on the meta device"),
        (lambda: torch.quantize_per_tensor(torch.eye(2), 0.1, 0, torch.qint8), "weight is quantised"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(1)]), "weight is nested"),
        (lambda: torch.eye(2, dtype=torch.complex64), r"weight is torch\.complex64 in the file"),
    ],
    ids=["sparse", "meta", "quantised", "nested", "complex"],
)
def test_tensors_that_cannot_be_copied_are_refused_for_what_they_are(make, reason):
    layer = nn.Linear(2, 2)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    with pytest.raises(DataError, match=reason):
        load_into(layer, {"bias": torch.zeros(2), "weight": make()}, source="x")
    assert same(layer.state_dict(), before)


def test_a_model_without_memory_is_refused():
    with pytest.raises(DataError, match="2 of the Linear's tensors are on the meta device"):
        load_into(nn.Linear(2, 2, device="meta"), nn.Linear(2, 2).state_dict(), source="x")


class Fussy(nn.Linear):
    """Takes its weights, and then does not like them."""

    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)
        raise ValueError("I want others")


def test_a_model_that_fails_while_it_loads_gets_its_weights_back():
    layer = Fussy(2, 2)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    with pytest.raises(DataError, match="cannot be copied into the Fussy: I want others"):
        load_into(layer, nn.Linear(2, 2).state_dict(), source="x")
    assert same(layer.state_dict(), before)


@pytest.mark.parametrize("name", ["net.pth.tar", "net.safetensors", "net.weights", "net"])
def test_a_file_is_read_for_what_it_holds_whatever_its_name(tmp_path, name):
    state = network(1).state_dict()
    torch.save({"state_dict": state}, tmp_path / name)
    assert same(load_state(tmp_path / name), state)
    save_model(network(1), str(tmp_path / name))
    assert same(load_state(tmp_path / name), state)


def test_a_checkpoint_named_tar_is_a_file_and_a_real_tar_is_to_be_unpacked(tmp_path):
    assert is_weights_file("model_best.pth.tar")
    torch.save(network().state_dict(), tmp_path / "net.pth")
    with tarfile.open(tmp_path / "net.tar", "w") as archive:
        archive.add(tmp_path / "net.pth", "net.pth")
    with pytest.raises(DataError, match=r"is a tar archive\. Unpack it"):
        load_state(tmp_path / "net.tar")


def test_a_small_file_that_would_fill_the_memory_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(64 * 2**20, dtype=torch.uint8)}, tmp_path / "net.pth")
    with (
        zipfile.ZipFile(tmp_path / "net.pth") as stored,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bomb,
    ):
        for name in stored.namelist():
            bomb.writestr(name, stored.read(name))
    assert (tmp_path / "bomb.pth").stat().st_size < 2**20
    with pytest.raises(DataError, match=r"bytes but would unpack to 671\d+: it is compressed"):
        load_state(tmp_path / "bomb.pth")
