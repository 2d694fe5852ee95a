from __future__ import annotations

import pytest
import torch
from flow_helpers import rows
from random_subnets import randomize

from posthoc_inn.config import FlowConfig
from posthoc_inn.errors import ConfigError, NotFittedError, ShapeError
from posthoc_inn.flows import CouplingFlow, FactorFlow


@pytest.fixture
def e():
    flow = randomize(FactorFlow(FlowConfig(dim=6, blocks=2, width=16), (3, 2, 1))).double()
    flow.initialize(rows(128, 6))
    return flow


def test_the_factors_are_the_flows_output_cut_residual_first(e):
    x = rows(10, 6)
    factors, log_det = e(x)
    assert [tuple(f.shape) for f in factors] == [(10, 3), (10, 2), (10, 1)]
    plain = CouplingFlow(e.config).double()
    plain.load_state_dict(e.state_dict())
    y, plain_log_det = plain(x)
    assert torch.equal(torch.cat(factors, dim=-1), y)
    assert torch.equal(log_det, plain_log_det)


def test_the_inverse_takes_factors_or_one_tensor(e):
    x = rows(10, 6)
    factors, _ = e(x)
    torch.testing.assert_close(e.inverse(factors), x)
    torch.testing.assert_close(e.inverse(list(factors)), x)
    torch.testing.assert_close(e.inverse(torch.cat(factors, dim=-1)), x)


def test_a_swapped_factor_is_found_again_and_the_others_are_untouched(e):
    own, _ = e(rows(10, 6))
    other, _ = e(rows(10, 6, seed=9) * 1.1)
    edited, _ = e(e.inverse((own[0], other[1], own[2])))
    for found, expected in zip(edited, (own[0], other[1], own[2]), strict=True):
        torch.testing.assert_close(found, expected)


def test_one_factor_broadcasts_over_many_images(e):
    own, _ = e(rows(10, 6))
    broadcast = e.inverse((own[0], own[1][:1], own[2]))
    torch.testing.assert_close(broadcast, e.inverse((own[0], own[1][:1].expand(10, 2), own[2])))


def test_leading_dimensions_are_free(e):
    factors, log_det = e(rows(10, 6).reshape(2, 5, 6))
    assert factors[1].shape == (2, 5, 2)
    assert log_det.shape == (2, 5)


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ((3, 2), "add up to 5, dim is 6"),
        ((4, 0, 2), "must be positive"),
        ((), "must be positive"),
        ((7, -1), "positive"),
    ],
)
def test_widths_must_be_positive_and_add_up(dims, message):
    with pytest.raises(ConfigError, match=message):
        FactorFlow(FlowConfig(dim=6), dims)


def test_every_problem_is_listed_at_once():
    with pytest.raises(ConfigError, match=r"add up to 5.*context_dim must be 0, got 2"):
        FactorFlow(FlowConfig(dim=6, context_dim=2), (3, 2))


def test_wrong_factors_and_contexts_are_refused(e):
    with pytest.raises(ShapeError, match=r"widths \(3, 1, 2\); accepted are \(3, 2, 1\)"):
        e.inverse((torch.zeros(4, 3), torch.zeros(4, 1), torch.zeros(4, 2)))
    with pytest.raises(ShapeError, match=r"accepted are"):
        e.inverse((torch.zeros(4, 3),))
    with pytest.raises(ShapeError, match=r"built without one"):
        e(torch.zeros(4, 6), torch.zeros(4, 2))


def test_before_initialisation_it_raises():
    e = FactorFlow(FlowConfig(dim=6, blocks=1, width=8), (3, 3))
    for call in (e, e.inverse):
        with pytest.raises(NotFittedError, match=r"initialize"):
            call(torch.zeros(2, 6))
