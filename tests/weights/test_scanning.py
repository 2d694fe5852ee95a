"""Small pickles that state large sizes: counted before they are unpickled, and refused in a line."""

from __future__ import annotations

import argparse
import collections
import io
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict

import pytest
import torch
from torch import nn

from posthoc_inn.errors import DataError
from posthoc_inn.weights import load_state, reading

INT = b"J" + struct.pack("<i", 2**31 - 1)
"""Pushes 2,147,483,647."""


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def call(name, arguments, opcode=b"R"):
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode() + arguments + opcode


def storage(kind="FloatStorage", numel=INT):
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text("0") + text("cpu") + numel + b"tQ"


def tensor(size, stride, of):
    return call("torch._utils._rebuild_tensor_v2", b"(" + of + b"K\x00" + size + stride + b"\x89}t")


FEW = b"K\x04"
LARGE = {
    "bytearray": call("builtins.bytearray", INT + b"\x85"),
    "bytearray by newobj": call("builtins.bytearray", INT + b"\x85", b"\x81"),
    "python 2's bytearray": call("__builtin__.bytearray", INT + b"\x85"),
    "tensor": call("torch.FloatTensor", INT + b"\x85"),
    "tensor by newobj": call("torch.Tensor", INT + b"\x85", b"\x81"),
    "tensor of lists": call("torch.Tensor", b"]" + b"K\x01a" * 5 + b"\x85"),
    "storage": call("torch.storage.UntypedStorage", INT + b"\x85"),
    "through a type": call(
        "torch._tensor._rebuild_from_type_v2", b"(cbuiltins\nbytearray\ncbuiltins\nbytearray\n" + INT + b"\x85Nt"
    ),
    "stated storage": tensor(INT + b"\x85", b"K\x01\x85", storage()),
    "enlarged storage": tensor(INT + b"\x85", b"K\x01\x85", storage(numel=FEW)),
    "set by build": call("torch.FloatTensor", b")", b"\x81")
    + b"(" + storage(numel=FEW) + b"K\x00" + INT + b"\x85K\x01\x85tb",
    "copied texts": text("a" * 20_000) + b"q\x00" + call("_codecs.encode", b"h\x00\x85") * 300,
    "copied lists": b"]q\x01(" + b"K\x01" * 20_000 + b"e" + call("builtins.set", b"h\x01\x85") * 300,
    "copied dicts": b"}q\x01(" + b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(9000)) + b"u"
    + call("collections.OrderedDict", b"h\x01\x85") * 500,
    "empty sets": b"\x8f" * 50_000,
    "empty lists": b"]" * 50_000,
    "marks": b"(" * 50_000,
    "memo": b"N" + b"".join(b"r" + struct.pack("<I", i) for i in range(50_000)),
    "deep tuple": b")" + b"\x85" * 1000,
    "deep key": b"})" + b"\x85" * 1000 + b"Ns",
}  # fmt: skip


def written(tmp_path, content, how):
    path = tmp_path / "net.pth"
    if how == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("net/data.pkl", content)
            archive.writestr("net/version", "3\n")
            archive.writestr("net/byteorder", "little")
            archive.writestr("net/data/0", b"\0" * 16)
    elif how == "another case":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("net/DATA.pkl", content)
            archive.writestr("net/VERSION", "3\n")
    else:
        head = io.BytesIO()
        for part in (torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {}):
            pickle.dump(part, head, protocol=2)
        path.write_bytes(head.getvalue() + content)
    return path


@pytest.fixture
def never_unpickled(monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError("torch.load was called")

    monkeypatch.setattr(reading.torch, "load", load)
    monkeypatch.setattr(reading, "_OBJECTS", 2**20)


@pytest.mark.parametrize("how", ["zip", "another case", "older format"])
@pytest.mark.parametrize("name", LARGE)
def test_a_large_claim_is_refused_before_anything_is_unpickled(tmp_path, never_unpickled, name, how):
    path = written(tmp_path, b"\x80\x02" + LARGE[name] + b".", how)
    with pytest.raises(DataError, match="so it is not loaded") as caught:
        load_state(path)
    assert str(caught.value).count("\n") == 0
    assert len(str(caught.value)) < 500


def test_a_few_values_repeated_to_many_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(1).expand(10**8)}, tmp_path / "net.pth")
    with pytest.raises(DataError, match=r"(would take|its tensors would take) .*bytes"):
        load_state(tmp_path / "net.pth")


def test_repeated_values_of_a_modest_size_are_taken(tmp_path):
    torch.save({"weight": torch.arange(3.0).expand(4, 3)}, tmp_path / "net.pth")
    assert load_state(tmp_path / "net.pth")["weight"].shape == (4, 3)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("is_zip", [True, False])
def test_all_that_training_scripts_keep_beside_weights_is_taken(tmp_path, is_zip):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.LSTM(4, 2))
    optimizer = torch.optim.Adam(model.parameters())
    model[0](torch.ones(2, 3)).sum().backward()
    optimizer.step()
    beside = {
        "optimizer": optimizer.state_dict(),
        "milestones": Counter([3, 3, 5]),
        "history": [0.5] * 1000 + [1e300, -1, 2**40, True, None],
        "nested": OrderedDict(a={1, 2}, b=(1, (2, (3,))), c=b"bytes", d=bytearray(b"bytes"), e=2 + 3j),
        "half": model[0].weight.half(),
        "parameter": model[0].weight,
        "view": torch.zeros(10, 10)[::2, 1:],
        "sparse": torch.eye(3).to_sparse(),
        "quantised": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "kinds": [torch.float16, torch.device("cpu"), torch.Size([2, 3]), torch.strided],
        "flag": torch.tensor(True),
        "generator": torch.get_rng_state(),
    }
    saved = {"state_dict": model.state_dict(), **beside}
    torch.save(saved, tmp_path / "net.pth", _use_new_zipfile_serialization=is_zip)
    found = load_state(tmp_path / "net.pth")
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())


def test_many_views_of_one_storage_are_counted_once(tmp_path):
    flat = torch.arange(2.0e6)
    torch.save({str(i): flat[i * 100 :][:100] for i in range(200)}, tmp_path / "net.pth")
    assert len(load_state(tmp_path / "net.pth")) == 200


def test_what_torch_refuses_by_name_is_still_named(tmp_path):
    torch.save({"a": torch.ones(1), "args": argparse.Namespace(lr=1), "d": collections.defaultdict}, tmp_path / "n.pth")
    with pytest.raises(DataError, match=r"it names argparse\.Namespace"):
        load_state(tmp_path / "n.pth")
