"""What every registered coupling must keep, conditional or not, at an even and an odd width (float64)."""

from __future__ import annotations

import copy

import pytest
import safetensors.torch
import torch
from flow_helpers import build, context_for, rows
from random_subnets import randomize

from posthoc_inn.config import FlowConfig
from posthoc_inn.errors import ConfigError, DataError, NotFittedError, ShapeError, UnknownNameError
from posthoc_inn.flows import COUPLINGS, AffineCoupling, CouplingFlow, set_compute_dtype
from posthoc_inn.protocols import Flow


@pytest.fixture(params=sorted(COUPLINGS))
def kind(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["unconditional", "conditional"])
def conditional(request):
    return request.param


@pytest.fixture(params=[6, 5, 2], ids=["even", "odd", "two"])
def flow(request, kind, conditional):
    return build(kind, conditional=conditional, dim=request.param)


def test_the_inverse_undoes_forward_and_forward_undoes_the_inverse(flow):
    x, context = rows(40, flow.config.dim) * 1.5, context_for(flow, 40)
    y, _ = flow(x, context)
    assert (y - x).abs().max() > 0.1
    torch.testing.assert_close(flow.inverse(y, context), x, atol=1e-9, rtol=1e-9)
    base = torch.randn(40, flow.config.dim, dtype=torch.float64) * 2
    torch.testing.assert_close(flow(flow.inverse(base, context), context)[0], base, atol=1e-9, rtol=1e-9)


def test_log_det_is_that_of_the_autograd_jacobian(flow):
    x, context = rows(3, flow.config.dim), context_for(flow, 3)
    _, log_det = flow(x, context)
    assert log_det.shape == (3,)
    assert log_det.std() > 1e-3, "a log-determinant that does not depend on x would pass trivially"
    for i in range(3):
        row_context = None if context is None else context[i]
        jacobian = torch.autograd.functional.jacobian(lambda r, c=row_context: flow(r, c)[0], x[i])
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_det[i], atol=1e-9, rtol=1e-9)


def test_a_batch_of_one_gives_what_it_gives_in_a_larger_batch(flow):
    x, context = rows(8, flow.config.dim), context_for(flow, 8)
    y, log_det = flow(x, context)
    one = None if context is None else context[:1]
    y_one, log_det_one = flow(x[:1], one)
    assert y_one.shape == (1, flow.config.dim)
    assert log_det_one.shape == (1,)
    torch.testing.assert_close(y_one, y[:1])
    torch.testing.assert_close(log_det_one, log_det[:1])
    torch.testing.assert_close(flow.inverse(y_one, one), x[:1])


def test_rows_do_not_see_each_other(flow):
    x, context = rows(8, flow.config.dim), context_for(flow, 8)
    y, log_det = flow(x, context)
    changed = x.clone()
    changed[3] += 1
    y_changed, log_det_changed = flow(changed, context)
    others = torch.arange(8) != 3
    torch.testing.assert_close(y_changed[others], y[others], atol=1e-12, rtol=0)
    torch.testing.assert_close(log_det_changed[others], log_det[others], atol=1e-12, rtol=0)
    assert not torch.allclose(y_changed[3], y[3])


@pytest.mark.parametrize("separate_nets", [False, True], ids=["merged", "separate"])
def test_a_gradient_reaches_every_parameter(kind, conditional, separate_nets):
    flow = build(kind, conditional=conditional, separate_nets=separate_nets)
    y, log_det = flow(rows(64, 6), context_for(flow, 64))
    (0.5 * y.square().sum(-1) - log_det).mean().backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_a_gradient_reaches_data_and_context(kind):
    flow = build(kind)
    x, context = rows(4, 6).requires_grad_(), context_for(flow, 4).requires_grad_()
    flow.inverse(flow(x, context)[0].detach(), context).square().sum().backward()
    assert context.grad.abs().max() > 0
    flow(x, context)[0].sum().backward()
    assert x.grad.abs().max() > 0


def test_a_saved_and_loaded_flow_gives_the_same_output(flow):
    data = safetensors.torch.save(flow.state_dict())
    other = CouplingFlow(flow.config.replace(seed=99)).double()
    assert not other.is_initialized
    other.load_state_dict(safetensors.torch.load(data))
    assert other.is_initialized
    x, context = rows(8, flow.config.dim), context_for(flow, 8)
    y, log_det = flow(x, context)
    y_other, log_det_other = other(x, context)
    assert torch.equal(y_other, y)
    assert torch.equal(log_det_other, log_det)
    assert torch.equal(other.inverse(y, context), flow.inverse(y, context))


def test_eval_and_no_grad_change_neither_output_nor_state(flow):
    x, context = rows(8, flow.config.dim), context_for(flow, 8)
    before = copy.deepcopy(flow.state_dict())
    y, log_det = flow.train()(x, context)
    with torch.no_grad():
        y_eval, log_det_eval = flow.eval()(x * 1, context)
        flow(x * 50 + 3, context)
        flow.inverse(x, context)
    torch.testing.assert_close(y_eval, y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log_det_eval, log_det, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())


def test_before_initialisation_forward_and_inverse_raise(kind, conditional):
    flow = CouplingFlow(FlowConfig(dim=4, context_dim=3 if conditional else 0, kind=kind, blocks=2, width=8))
    x, context = torch.randn(4, 4), context_for(flow, 4)
    for call in (flow, flow.inverse):
        with pytest.raises(NotFittedError, match=r"not initialised.*initialize"):
            call(x, context)


def test_a_new_flow_only_standardises(kind):
    flow = CouplingFlow(FlowConfig(dim=6, kind=kind, blocks=4, width=8))
    x = rows(500, 6, dtype=torch.float32)
    flow.initialize(x)
    y, log_det = flow(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(y.std(0, unbiased=False), torch.ones(6), atol=1e-3, rtol=0)
    expected = -x.std(0, unbiased=False).log().sum()
    torch.testing.assert_close(log_det, expected.expand(500), atol=1e-3, rtol=0)


def test_after_initialisation_every_actnorm_returns_standardised_features(flow):
    x, context = rows(256, flow.config.dim), context_for(flow, 256)
    seen = []
    for block in flow.blocks:
        block.actnorm.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    flow.eval()(x, context)
    assert len(seen) == flow.config.blocks
    for y in seen:
        torch.testing.assert_close(y.mean(0), torch.zeros_like(y[0]), atol=1e-5, rtol=0)
        torch.testing.assert_close(y.std(0, unbiased=False), torch.ones_like(y[0]), atol=1e-3, rtol=0)


def test_construction_leaves_the_global_generator_alone_and_the_seed_decides_the_weights(kind, conditional):
    config = FlowConfig(dim=6, context_dim=3 if conditional else 0, kind=kind, blocks=2, width=8, seed=5)
    before = torch.get_rng_state()
    first = CouplingFlow(config).state_dict()
    torch.rand(3)
    torch.set_rng_state(before)
    second = CouplingFlow(config).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = CouplingFlow(config.replace(seed=6)).state_dict()
    name = next(name for name in first if name.endswith("input.weight"))
    assert not torch.equal(first[name], other[name])
    # What moves is decided by permutations, or by masks.
    parted = [name for name in first if name.endswith(("permutation.permutation", ".moved"))]
    assert any(not torch.equal(first[name], other[name]) for name in parted)


def test_blocks_differ_from_each_other():
    state = CouplingFlow(FlowConfig(dim=32, blocks=2, width=8)).state_dict()
    for part in ("couplings.0.nets.0.input.weight", "permutation.permutation"):
        assert not torch.equal(state[f"blocks.0.{part}"], state[f"blocks.1.{part}"])


def test_leading_dimensions_and_a_broadcast_context_equal_a_loop(kind):
    flow = build(kind)
    context = context_for(flow, 4)
    v = torch.randn(4, 7, 6, dtype=torch.float64)
    together = flow.inverse(v, context.unsqueeze(1))
    y, log_det = flow(together, context.unsqueeze(1))
    assert log_det.shape == (4, 7)
    torch.testing.assert_close(y, v, atol=1e-9, rtol=1e-9)
    for b in range(4):
        for n in range(7):
            torch.testing.assert_close(together[b, n], flow.inverse(v[b, n], context[b]))


def test_one_v_under_many_contexts_broadcasts_too(kind):
    flow = build(kind)
    context, v = context_for(flow, 4), torch.randn(1, 6, dtype=torch.float64)
    torch.testing.assert_close(flow.inverse(v, context), flow.inverse(v.expand(4, 6), context))


def test_a_projected_context_equals_the_context_it_was_made_from(kind):
    flow = build(kind).eval()
    context, x = context_for(flow, 4).unsqueeze(1), rows(20, 6).reshape(4, 5, 6)
    projected = flow.project(context)
    y, log_det = flow(x, context)
    y_projected, log_det_projected = flow(x, projected)
    assert torch.equal(y_projected, y)
    assert torch.equal(log_det_projected, log_det)
    assert torch.equal(flow.inverse(y, projected), flow.inverse(y, context))


def test_the_context_changes_the_output(kind):
    flow = build(kind)
    x, context = rows(4, 6), context_for(flow, 4)
    assert not torch.allclose(flow(x, context)[0], flow(x, context + 1)[0])


@pytest.mark.parametrize(
    ("options", "x", "context", "message"),
    [
        ({}, (4, 5), (4, 3), r"x has shape \(4, 5\); accepted is \(\.\.\., 6\)"),
        ({}, (), (4, 3), r"x has shape \(\)"),
        ({}, (4, 6), None, "No context was given"),
        ({}, (4, 6), (4, 2), r"context has shape \(4, 2\); accepted is \(\.\.\., 3\)"),
        ({}, (4, 6), (5, 3), r"leading shape \(4,\) and the context \(5,\)"),
        ({"conditional": False}, (4, 6), (4, 3), "built without one"),
    ],
)
def test_wrong_shapes_are_named(options, x, context, message):
    flow = build(**options)
    context = None if context is None else torch.zeros(context)
    for call in (flow, flow.inverse):
        with pytest.raises(ShapeError, match=message):
            call(torch.zeros(x), context)


def test_a_context_projected_by_another_flow_is_refused():
    flow, other = build(blocks=3), build(blocks=2)
    projected = other.project(context_for(flow, 4))
    with pytest.raises(ShapeError, match=r"for 4 couplings, this flow has 6"):
        flow(rows(4, 6), projected)


def test_initialising_twice_is_an_error_unless_forced(kind):
    flow = build(kind, conditional=False)
    with pytest.raises(ConfigError, match=r"already initialised.*force=True"):
        flow.initialize(rows(32, 6))
    other = rows(32, 6) * 9
    assert flow.blocks[0].actnorm(other)[0].std() > 5
    flow.initialize(other, force=True)
    assert flow.blocks[0].actnorm(other)[0].std(unbiased=False).item() == pytest.approx(1, abs=1e-4)


def test_initialising_from_one_row_or_from_nan_is_an_error_and_leaves_the_flow_uninitialised():
    flow = CouplingFlow(FlowConfig(dim=4, context_dim=3, blocks=2, width=8))
    with pytest.raises(ShapeError, match=r"got 1 row.*at least 2"):
        flow.initialize(torch.randn(1, 4), torch.randn(1, 3))
    x = torch.randn(8, 4)
    with pytest.raises(DataError, match=r"1 of 8 rows.*NaN"):
        flow.initialize(torch.where(torch.eye(8, 4).bool() & (torch.arange(4) == 1), torch.nan, x), torch.randn(8, 3))
    with pytest.raises(DataError, match=r"context.*NaN"):
        flow.initialize(x, torch.full((8, 3), torch.inf))
    assert not flow.is_initialized
    flow.initialize(x, torch.randn(8, 3))
    assert flow.is_initialized


def test_initialising_restores_every_train_flag_and_drops_nothing_out():
    flow = randomize(CouplingFlow(FlowConfig(dim=6, blocks=2, width=8, dropout=0.5)))
    flow.blocks[1].eval()
    flags = [m.training for m in flow.modules()]
    state = torch.get_rng_state()
    flow.initialize(rows(64, 6))
    assert [m.training for m in flow.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_acts_in_training_only():
    flow = randomize(CouplingFlow(FlowConfig(dim=6, blocks=2, width=32, dropout=0.5)))
    x = rows(64, 6, dtype=torch.float32)
    flow.initialize(x)
    assert not torch.equal(flow(x)[0], flow(x)[0])
    flow.eval()
    assert torch.equal(flow(x)[0], flow(x)[0])


def test_an_unknown_coupling_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"no coupling 'afine'. Did you mean 'affine'"):
        CouplingFlow(FlowConfig(dim=4, kind="afine"))


def test_a_given_factory_makes_the_couplings_and_needs_no_project():
    class Shift(torch.nn.Module):
        def __init__(self, config, index, *, generator):
            super().__init__()
            self.index = index
            self.linear = torch.nn.Linear(config.context_dim, config.dim)

        def forward(self, x, context):
            return x + self.linear(context), x.new_zeros(x.shape[:-1])

        def inverse(self, y, context):
            return y - self.linear(context)

    flow = CouplingFlow(FlowConfig(dim=4, context_dim=3, blocks=2, kind="shift"), coupling=Shift)
    assert [c.index for block in flow.blocks for c in block.couplings] == [0, 1, 2, 3]
    x, context = torch.randn(64, 4), torch.randn(64, 3)
    flow.initialize(x, context)
    y, _ = flow(x, flow.project(context))
    torch.testing.assert_close(flow.inverse(y, context), x, atol=1e-5, rtol=1e-5)


def test_a_flow_satisfies_the_protocol(flow):
    assert isinstance(flow, Flow)


def round_trip_error(kind, compute_dtype):
    """Errors of 8 blocks at D = 64 with moderate random heads, there and back from N(0, 1)."""
    flow = build(kind, dim=64, blocks=8, width=64, dtype=torch.float32, tail=5.0, bins=8, scale=0.3)
    set_compute_dtype(flow, compute_dtype)
    v, context = torch.randn(128, 64), context_for(flow, 128)
    with torch.no_grad():
        return (flow(flow.inverse(v, context), context)[0] - v).abs()


@pytest.mark.parametrize(("kind", "bound"), [("affine", 1e-5), ("spline", 1e-3)])
def test_the_round_trip_error_in_float32_is_bounded(kind, bound):
    assert round_trip_error(kind, None).max() < bound


@pytest.mark.parametrize(("kind", "bound"), [("affine", 0.05), ("spline", 0.3)])
def test_the_round_trip_error_with_bf16_products_is_bounded(kind, bound):
    """The typical error is float32's; where a subnet's input rounds apart on the way back it is bf16's."""
    error = round_trip_error(kind, torch.bfloat16)
    assert error.median() < 1e-5
    assert error.max() < bound


def test_bf16_products_change_little_and_log_det_stays_float32(kind):
    flow = build(kind, dtype=torch.float32, scale=0.3)
    x, context = rows(64, 6, dtype=torch.float32), context_for(flow, 64)
    y, log_det = flow(x, context)
    set_compute_dtype(flow, torch.bfloat16)
    y_low, log_det_low = flow(x, context)
    assert y_low.dtype == log_det_low.dtype == torch.float32
    assert 0 < (log_det_low - log_det).abs().max() < 0.3
    set_compute_dtype(flow, None)
    assert torch.equal(flow(x, context)[0], y)
    with pytest.raises(ConfigError, match=r"floating-point"):
        set_compute_dtype(flow, torch.int8)


def test_under_autocast_only_products_lose_precision(kind):
    flow = build(kind, dtype=torch.float32, scale=0.3)
    x, context = rows(64, 6, dtype=torch.float32), context_for(flow, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, log_det = flow(x, context)
    assert y.dtype == log_det.dtype == torch.float32
    assert (log_det - flow(x, context)[1]).abs().max() < 0.3


def test_log_det_is_float32_even_where_parameters_are_not(kind):
    flow = build(kind, conditional=False, dtype=torch.float32).bfloat16()
    y, log_det = flow(rows(8, 6))
    assert y.dtype == torch.bfloat16
    assert log_det.dtype == torch.float32


def test_no_coupling_scales_by_more_than_its_bound():
    coupling = randomize(AffineCoupling(FlowConfig(dim=6, width=16, scale_bound=0.7)), scale=1e4).double()
    _, log_det = coupling(rows(100, 6) * 1e3)
    assert log_det.abs().max() <= 3 * 0.7 + 1e-12
    assert log_det.abs().max() > 2


@pytest.mark.parametrize(
    ("dim", "context", "blocks", "width", "millions"), [(128, 128, 20, 1024, 189), (64, 0, 12, 512, 27)]
)
def test_the_papers_networks_have_the_papers_sizes(dim, context, blocks, width, millions):
    """h_d = 2 of MSC tab. S10 counts the layers between hidden layers: three hidden layers."""
    config = FlowConfig(dim=dim, context_dim=context, blocks=blocks, width=width, depth=3, separate_nets=True)
    with torch.device("meta"):
        flow = CouplingFlow(config)
    assert sum(p.numel() for p in flow.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)
