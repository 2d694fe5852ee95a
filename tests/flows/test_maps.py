"""Couplings over maps: what moves, what they see, the flow contract with contexts that have places."""

from __future__ import annotations

import itertools

import pytest
import torch
from flow_helpers import rows
from random_subnets import randomize

from posthoc_inn.config import FlowConfig
from posthoc_inn.errors import ConfigError
from posthoc_inn.flows import COUPLINGS, CouplingFlow
from posthoc_inn.flows.maps import moved_by

SHAPE = (3, 4, 6)
KINDS = ("conv", "transformer")


def config_of(kind, **options):
    sizes = {"dim": 72, "latent_shape": SHAPE, "context_dim": 5 + 2 * 24, "context_channels": 2, "blocks": 2}
    return FlowConfig(**(sizes | {"kind": kind, "width": 8, "depth": 1} | options))


def built(kind, **options):
    flow = randomize(CouplingFlow(config_of(kind, **options)), scale=0.5).double().eval()
    flow.initialize(rows(64, 72), context_of(flow, 64))
    return flow


def context_of(flow, *lead):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(*lead, flow.config.context_dim, generator=generator, dtype=torch.float64)


def test_what_one_coupling_moves_its_partner_keeps_and_every_value_moves():
    config = config_of("conv")
    for pair in range(4):
        first, second = moved_by(config, 2 * pair), moved_by(config, 2 * pair + 1)
        assert bool((first ^ second).all())
    checkerboard, channels = moved_by(config, 0), moved_by(config, 2)
    assert checkerboard.all(0)[:2, :2].tolist() == [[False, True], [True, False]]
    assert channels.flatten(1).all(1).sum() == 1  # of three channels
    assert bool((channels == channels[:, :1, :1]).all())
    assert any(not torch.equal(moved_by(config, 2), moved_by(config, 2 + 4 * k)) for k in range(1, 6))


@pytest.mark.parametrize(("shape", "dim"), [((1, 4, 4), 16), ((6, 1, 1), 6), ((), 6)])
def test_a_code_of_one_channel_or_one_place_is_parted_too(shape, dim):
    config = FlowConfig(dim=dim, latent_shape=shape, kind="conv", width=4)
    for index in range(4):
        assert int(moved_by(config, index).sum()) == dim // 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_contract_holds_with_a_context_that_has_places(kind):
    flow = built(kind)
    x, context = rows(4, 72), context_of(flow, 4)
    y, log_det = flow(x, context)
    torch.testing.assert_close(flow.inverse(y, context), x, atol=1e-9, rtol=1e-9)
    jacobian = torch.autograd.functional.jacobian(lambda r: flow(r, context[0])[0], x[0])
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_det[0], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_many_samples_share_a_projected_context(kind):
    flow = built(kind)
    v, context = rows(12, 72).reshape(3, 4, 72), context_of(flow, 3)
    shared = flow.inverse(v, flow.project(context.unsqueeze(1)))
    for image, draw in itertools.product(range(3), range(4)):
        alone = flow.inverse(v[image, draw][None], context[image][None])[0]
        torch.testing.assert_close(shared[image, draw], alone, atol=1e-9, rtol=1e-9)


def test_a_convolution_sees_neighbours_and_a_transformer_sees_everything():
    """The place (1, 1) is kept by the first coupling; its convolutions reach two places further."""
    for kind, is_everywhere in (("conv", False), ("transformer", True)):
        flow = built(kind, blocks=1)
        first = flow.blocks[0].couplings[0]
        x, context = rows(1, 72), context_of(flow, 1)
        touched = x.clone()
        touched[0, 1 * 6 + 1] += 1.0
        seen = changed(first(touched, context)[0] - first(x, context)[0])
        assert bool(seen[1, 0])
        assert bool(seen[:, 4:].any()) == is_everywhere


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_at_a_place_of_the_context_conditions_that_place(kind):
    flow = built(kind, blocks=1)
    first = flow.blocks[0].couplings[0]
    x, context = rows(1, 72), context_of(flow, 1)
    touched = context.clone()
    touched[0, 5 + 1 * 6 + 2] += 1.0  # the place (1, 2), which moves, in the first channel of the map
    seen = changed(first(x, touched)[0] - first(x, context)[0])
    assert bool(seen[1, 2])
    assert bool(seen[:, 5].any()) == (kind == "transformer")


def changed(difference):
    """Return at which places (h, w) anything moved."""
    return (difference.reshape(SHAPE).abs() > 1e-12).any(0)


def test_nothing_is_shuffled_between_maps():
    flow = built("conv")
    for block in flow.blocks:
        assert torch.equal(block.permutation.permutation, torch.arange(72))
    vector = CouplingFlow(FlowConfig(dim=72, width=8))
    assert not torch.equal(vector.blocks[0].permutation.permutation, torch.arange(72))


def test_a_flow_over_maps_comes_back_from_its_weights():
    flow = built("transformer")
    other = CouplingFlow(flow.config).double().eval()
    other.load_state_dict(flow.state_dict())
    x, context = rows(3, 72), context_of(flow, 3)
    assert torch.equal(other(x, context)[0], flow(x, context)[0])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"latent_shape": (3, 4, 5)}, r"latent_shape must be \(C, h, w\) of 72 values, got \(3, 4, 5\)"),
        ({"latent_shape": (72,)}, "latent_shape must be"),
        ({"context_channels": 3}, "3 context_channels are 72 values, of a context of width 53"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        config_of("conv", **options)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_acts_in_training_alone_and_weights_of_a_seed_are_the_same(kind):
    flow = built(kind, dropout=0.5, depth=2)
    x, context = rows(3, 72), context_of(flow, 3)
    assert not torch.equal(flow.train()(x, context)[0], flow.eval()(x, context)[0])
    again, other = (COUPLINGS[kind](config_of(kind, seed=s), 0) for s in (0, 1))
    assert torch.equal(again.input.weight, COUPLINGS[kind](config_of(kind), 0).input.weight)
    assert not torch.equal(again.input.weight, other.input.weight)
