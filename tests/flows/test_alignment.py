"""The linear map before the blocks of e: inverse and log-determinant against autograd, loading, refusals."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from flow_helpers import rows
from random_subnets import randomize

from posthoc_inn.config import FlowConfig
from posthoc_inn.errors import ConfigError, NotFittedError, ShapeError
from posthoc_inn.flows import FactorFlow
from posthoc_inn.flows.alignment import Alignment, is_invertible


def matrix(dim=5, seed=0):
    return torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def aligned_flow(dtype=torch.float64, blocks=3):
    flow = FactorFlow(FlowConfig(dim=6, blocks=blocks, width=16, seed=4), (3, 2, 1), aligned=True).to(dtype)
    flow.align(rows(256, 6).mean(0).to(dtype), matrix(6).to(dtype))
    return flow


def test_the_map_its_inverse_and_its_log_determinant():
    align, mean, weight = Alignment(5).double(), torch.arange(5.0).double(), matrix()
    align.set(mean, weight)
    x = rows(7, 5)
    y, log_det = align(x)
    torch.testing.assert_close(y, torch.stack([weight @ (row - mean) for row in x]))
    torch.testing.assert_close(align.inverse(y), x)
    torch.testing.assert_close(log_det, torch.full((7,), float(weight.det().abs().log()), dtype=torch.float64))


def test_what_is_derived_from_the_weight_follows_it():
    align = Alignment(5).double()
    align.set(torch.zeros(5), matrix(seed=1))
    align(rows(2, 5))
    for change in (
        lambda m: m.set(torch.ones(5), matrix(seed=2)),
        lambda m: m.load_state_dict({**m.state_dict(), "weight": matrix(seed=3)}),
        lambda m: m.weight.mul_(2),
        lambda m: m.float(),
    ):
        change(align)
        x = rows(4, 5).to(align.weight.dtype)
        y, log_det = align(x)
        torch.testing.assert_close(align.inverse(y), x, atol=1e-4, rtol=1e-4)
        assert float(log_det[0]) == pytest.approx(float(torch.linalg.slogdet(align.weight.double())[1]), abs=1e-5)
    other = copy.deepcopy(align)
    other.weight.mul_(3)
    x = rows(3, 5).float()
    torch.testing.assert_close(other.inverse(other(x)[0]), x, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(align.inverse(align(x)[0]), x, atol=1e-4, rtol=1e-4)


def test_it_refuses_what_has_no_way_back():
    align = Alignment(3)
    with pytest.raises(NotFittedError, match="alignment was not set"):
        align(torch.zeros(2, 3))
    for bad in (torch.ones(3, 3), torch.full((3, 3), float("nan")), torch.diag(torch.tensor([1.0, 1.0, 0.0]))):
        assert not is_invertible(bad)
        with pytest.raises(ShapeError, match="invertible"):
            align.set(torch.zeros(3), bad)
        with pytest.raises(RuntimeError, match="weight is not an invertible matrix"):
            align.load_state_dict({**align.state_dict(), "weight": bad})
    with pytest.raises(ShapeError, match=r"accepted are \(3,\) and \(3, 3\)"):
        align.set(torch.zeros(3), torch.eye(4))


@pytest.mark.parametrize("blocks", [1, 3])
def test_an_aligned_flow_starts_as_its_directions(blocks):
    flow = aligned_flow(blocks=blocks)
    x = rows(20, 6)
    factors, log_det = flow(x)
    expected = (x - rows(256, 6).mean(0)) @ matrix(6).T
    torch.testing.assert_close(torch.cat(factors, dim=1), expected)
    assert log_det[0].item() == pytest.approx(float(torch.linalg.slogdet(matrix(6))[1]), abs=1e-9)
    assert flow.is_initialized


def test_an_aligned_flow_is_exact_when_its_blocks_move():
    flow = randomize(aligned_flow()).eval()
    x = rows(4, 6)
    factors, log_det = flow(x)
    for k, row in enumerate(x):
        jacobian = torch.autograd.functional.jacobian(lambda r: torch.cat(flow(r[None])[0], dim=1)[0], row)
        assert log_det[k].item() == pytest.approx(float(torch.linalg.slogdet(jacobian)[1]), abs=1e-9)
    torch.testing.assert_close(flow.inverse(factors), x)


def test_the_fast_training_pass_agrees_with_the_plain_one():
    flow = randomize(aligned_flow()).train()
    x = rows(32, 6)
    fast = flow(x)
    plain = flow.eval()(x)
    torch.testing.assert_close(torch.cat(fast[0], dim=1), torch.cat(plain[0], dim=1))
    torch.testing.assert_close(fast[1], plain[1])


def test_it_is_saved_with_the_flow():
    flow, config = randomize(aligned_flow()), FlowConfig(dim=6, blocks=3, width=16, seed=9)
    other = FactorFlow(config, (3, 2, 1), aligned=True).double()
    assert not other.is_initialized
    other.load_state_dict(flow.state_dict())
    x = rows(5, 6)
    assert other.is_initialized
    assert all(torch.equal(a, b) for a, b in zip(other(x)[0], flow(x)[0], strict=True))


def test_each_kind_of_flow_is_started_in_its_own_way():
    plain = FactorFlow(FlowConfig(dim=6, blocks=1, width=4), (5, 1))
    with pytest.raises(ConfigError, match="aligned=True"):
        plain.align(torch.zeros(6), torch.eye(6))
    aligned = FactorFlow(FlowConfig(dim=6, blocks=1, width=4), (5, 1), aligned=True)
    with pytest.raises(ConfigError, match=r"align\(\)"):
        aligned.initialize(torch.randn(300, 6))
    with pytest.raises(NotFittedError):
        aligned(torch.randn(3, 6))
    with pytest.raises(ShapeError):
        aligned_flow()(torch.zeros(3, 7))


def test_a_weight_whose_writes_are_not_counted_is_read_anew(monkeypatch):
    align = Alignment(2)
    align.set(torch.zeros(2), torch.eye(2))
    assert float(align(torch.ones(1, 2))[1]) == 0
    monkeypatch.setattr(torch.Tensor, "_version", property(lambda tensor: tensor.no_such_thing))
    with torch.no_grad():
        align.weight.mul_(2)
    assert float(align(torch.ones(1, 2))[1]) == pytest.approx(math.log(4))
