"""Digests of rare kinds of tensors: stable, different for different values, or refused."""

import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from posthoc_inn.errors import DataError
from posthoc_inn.weights import describe_tensors, fingerprint

pytestmark = pytest.mark.filterwarnings("ignore:.*(prototype|[Ss]parse|quantiz).*")


def quantised(scale, zero=0):
    return torch.quantize_per_tensor(torch.arange(4.0) * scale, scale, zero, torch.qint8)


def per_channel(scale):
    scales = torch.tensor([scale, 1.0])
    return torch.quantize_per_channel(torch.eye(2) * scales[:, None], scales, torch.zeros(2).long(), 0, torch.qint8)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: (torch.ones(4) * x).to(torch.float8_e4m3fn),
        lambda x: torch.ones(4, dtype=torch.bfloat16) * x,
        lambda x: torch.full((4,), 1j * x).conj(),
        lambda x: torch.tensor([True, x > 1]),
        lambda x: torch.full((2, 3), x).expand(4, 2, 3).transpose(0, 2),
        lambda x: torch.zeros(0, int(x)),
        lambda x: torch.tensor(x),
        lambda x: (torch.eye(3) * x).to_sparse(),
        lambda x: (torch.eye(3) * x).to_sparse_csr(),
        quantised,
        per_channel,
        lambda x: torch.full((4,), int(x), dtype=torch.uint8).view(torch.uint4),
        lambda x: torch.full((4,), int(x), dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
        lambda x: torch.nested.nested_tensor([torch.ones(2) * x, torch.ones(3)]),
        lambda x: TwoTensor(torch.ones(2), torch.ones(2) * x),
    ],
    ids=[
        "float8",
        "bfloat16",
        "complex",
        "bool",
        "strided",
        "empty",
        "scalar",
        "sparse",
        "csr",
        "quantised",
        "channels",
        "uint4",
        "float4",
        "nested",
        "packed",
    ],
)
def test_every_kind_of_tensor_has_a_digest_of_its_values(make):
    assert fingerprint({"a": make(1.0)}) == fingerprint({"a": make(1.0)})
    assert fingerprint({"a": make(1.0)}) != fingerprint({"a": make(2.0)})
    assert list(describe_tensors({"a": make(1.0)})) == ["a"]


def test_tensors_without_values_have_no_digest():
    with pytest.raises(DataError, match="meta device, without values"):
        fingerprint(nn.Linear(2, 2, device="meta"))


class Sealed(torch.Tensor):
    """Can be detached and nothing else."""

    @staticmethod
    def __new__(cls, shape):
        return torch.Tensor._make_wrapper_subclass(cls, shape)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].shape)
        raise NotImplementedError(f"Sealed does not do {func}")


def test_a_tensor_whose_bytes_cannot_be_read_is_named():
    with pytest.raises(DataError, match=r"values of head\.weight \(Sealed, torch\.float32\) cannot be read as bytes"):
        fingerprint({"head.weight": Sealed((2, 2))})
