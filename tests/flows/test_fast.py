"""The fast path of training against the plain flow: values, gradients, memory that is used again."""

import copy

import pytest
import torch
from flow_helpers import build, context_for, rows

from posthoc_inn.config import ConditionerConfig, FlowConfig
from posthoc_inn.errors import NotFittedError, ShapeError
from posthoc_inn.flows import ConditionalFlow, CouplingFlow, computing_in, set_compute_dtype
from posthoc_inn.flows.fast import training as fast
from posthoc_inn.flows.fast.workspace import _WORKSPACES, LARGE
from posthoc_inn.objectives import flow_nll

SHAPES = {
    "default": {},
    "one hidden layer": {"depth": 1},
    "papers": {"depth": 3, "separate_nets": True, "activation": "leaky_relu"},
    "odd width": {"dim": 7, "scale_bound": 1.7},
    "odd width, separate": {"dim": 5, "separate_nets": True},
    "unconditional": {"conditional": False, "activation": "relu"},
    "gelu": {"activation": "gelu"},
    "dropout": {"dropout": 0.25},
    "dropout, separate": {"dropout": 0.5, "separate_nets": True, "depth": 3},
}


@pytest.fixture
def no_fast_path(monkeypatch):
    """Return a function that runs another with the plain flow only."""

    def run(function, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(fast, "applies", lambda *_: False)
            return function(*arguments)

    return run


def is_fast(flow, x, context):
    """Whether a forward pass takes the fast path."""
    calls, real = [], fast.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, "forward", lambda *arguments: calls.append(arguments) or real(*arguments))
        flow(x, context)
    return bool(calls)


def outcome(flow, x, context, weights):
    """Return everything a step makes: outputs, and gradients of inputs and parameters of an arbitrary loss."""
    torch.manual_seed(4)
    y, log_det = flow(x, context)
    loss = (y * weights).sum() + (log_det * weights[..., 0]).sum() + flow_nll(y, log_det).mean()
    inputs = [t for t in (x, context, *flow.parameters()) if t is not None and t.requires_grad]
    return [y, log_det, *torch.autograd.grad(loss, inputs)]


def case(options, *, n=24, dtype=torch.float64):
    flow = build(**options).to(dtype).train()
    x = rows(n, flow.config.dim, seed=5, dtype=dtype).requires_grad_()
    context = context_for(flow, n, seed=8)
    context = None if context is None else context.to(dtype).requires_grad_()
    weights = torch.randn(n, flow.config.dim, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    return flow, x, context, weights.to(dtype)


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES.keys())
def test_values_and_gradients_are_those_of_the_plain_flow(options, no_fast_path):
    flow, *data = case(options)
    assert is_fast(flow, *data[:2])
    got, expected = outcome(flow, *data), no_fast_path(outcome, flow, *data)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("precision", "bound"), [(None, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("width", [32, 512])
def test_lower_precisions_stay_close_to_float64(precision, bound, seed, width, no_fast_path):
    assert 32**2 < LARGE <= 512**2, "both ways of widening gradients are meant to be covered"
    flow, x, context, weights = case({"width": width, "depth": 3, "seed": seed, "scale": 0.5}, n=64)
    expected = no_fast_path(outcome, flow, x, context, weights)
    low = copy.deepcopy(flow).float()
    set_compute_dtype(low, precision)
    got = outcome(low, *(t.detach().float().requires_grad_(t is not weights) for t in (x, context, weights)))
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == torch.float32
        assert (a.double() - b).norm() <= bound * b.norm() + 1e-6
    nll = [flow_nll(run[0].double(), run[1].double()).mean() for run in (got, expected)]
    assert abs(nll[0] - nll[1]) < (1e-4 if precision is None else 0.1)


def test_it_learns_what_the_plain_flow_learns(no_fast_path):
    def train(flow):
        optimizer = torch.optim.AdamW(flow.parameters(), lr=1e-3, fused=True)
        losses = []
        for step in range(30):
            x, context = rows(32, 6, seed=step, dtype=torch.float32), context_for(flow, 32, seed=step).float()
            optimizer.zero_grad()
            loss = flow_nll(*flow(x, context)).mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    flow = build(dtype=torch.float32).train()
    twin = copy.deepcopy(flow)
    assert train(flow) == pytest.approx(no_fast_path(train, twin), rel=1e-3)


def test_samples_an_image_and_broadcast_contexts(no_fast_path):
    flow, *_ = case({})
    x, context = rows(12, 6).view(3, 4, 6), context_for(flow, 3).view(3, 1, 3).requires_grad_()
    weights = torch.ones(3, 4, 6, dtype=torch.float64)
    got, expected = outcome(flow, x, context, weights), no_fast_path(outcome, flow, x, context, weights)
    assert got[0].shape == (3, 4, 6)
    assert got[1].shape == (3, 4)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def step(flow, n=16, seed=1):
    loss = flow_nll(*flow(rows(n, 6, seed=seed, dtype=torch.float32), context_for(flow, n, seed=seed).float())).mean()
    loss.backward()


@pytest.fixture(params=[None, torch.bfloat16], ids=["fp32", "bf16"])
def flow(request):
    flow = build(dtype=torch.float32).train()
    set_compute_dtype(flow, request.param)
    return flow


def gradients(flow):
    return [p.grad.clone() for p in flow.parameters()]


def test_gradients_use_the_same_memory_at_every_step(flow):
    step(flow)
    places = [p.grad.data_ptr() for p in flow.parameters()]
    flow.zero_grad()
    step(flow)
    assert [p.grad.data_ptr() for p in flow.parameters()] == places


def test_gradients_that_are_still_held_are_not_written_over(flow):
    step(flow, seed=1)
    held = [p.grad for p in flow.parameters()]
    values = [g.clone() for g in held]
    flow.zero_grad()
    step(flow, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(held, values, strict=True))
    assert not all(torch.equal(p.grad, b) for p, b in zip(flow.parameters(), values, strict=True))


def test_gradients_accumulate(flow):
    separate = []
    for seed in (1, 2):
        flow.zero_grad()
        step(flow, seed=seed)
        separate.append(gradients(flow))
    flow.zero_grad()
    step(flow, seed=1)
    step(flow, seed=2)
    for p, a, b in zip(flow.parameters(), *separate, strict=True):
        torch.testing.assert_close(p.grad, a + b)


def test_two_passes_before_one_backward_pass(flow):
    x, context = rows(16, 6, dtype=torch.float32), context_for(flow, 16).float()
    flow.zero_grad()
    (flow(x, context)[1].sum() + flow(x * 0.5, context)[0].square().sum()).backward()
    together = gradients(flow)
    flow.zero_grad()
    flow(x, context)[1].sum().backward()
    flow(x * 0.5, context)[0].square().sum().backward()
    for p, expected in zip(flow.parameters(), together, strict=True):
        torch.testing.assert_close(p.grad, expected)


def test_batches_of_changing_size(flow):
    twin = copy.deepcopy(flow)
    for n in (16, 7, 16, 3):
        flow.zero_grad()
        step(flow, n=n)
    twin.zero_grad()
    step(twin, n=3)
    for p, q in zip(flow.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_changed_weights_are_seen_however_they_are_changed(flow):
    def likelihoods():
        x, context = rows(16, 6, dtype=torch.float32), context_for(flow, 16).float()
        fast_one = flow(x, context)[1].detach()
        return fast_one, flow.eval()(x, context)[1].detach(), flow.train()

    before = likelihoods()[0]
    for change in ("data", "state", "permutation"):
        state = {k: v.clone() for k, v in flow.state_dict().items()}
        if change == "data":
            for p in flow.parameters():
                p.data.mul_(1.1)
        elif change == "state":
            flow.load_state_dict({k: v * 0.9 if v.is_floating_point() else v for k, v in state.items()})
        else:
            key = "blocks.0.permutation.permutation"
            flow.load_state_dict(state | {key: state[key].flip(0)})
        got, plain, _ = likelihoods()
        torch.testing.assert_close(got, plain, rtol=0.02, atol=0.05)
        assert not torch.equal(got, before)


def test_frozen_parameters_get_no_gradient(flow):
    frozen = list(flow.parameters())[3]
    frozen.requires_grad_(False)
    step(flow)
    assert frozen.grad is None
    assert sum(p.grad is not None for p in flow.parameters()) == len(list(flow.parameters())) - 1


def test_the_graph_can_be_kept_for_a_second_backward_pass(flow):
    x, context = rows(8, 6, dtype=torch.float32), context_for(flow, 8).float()
    loss = flow(x, context)[1].sum()
    loss.backward(retain_graph=True)
    once = gradients(flow)
    loss.backward()
    for p, expected in zip(flow.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, 2 * expected)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_weights_changed_before_the_backward_pass_are_noticed(flow):
    loss = flow(rows(8, 6, dtype=torch.float32), context_for(flow, 8).float())[1].sum()
    with torch.no_grad():
        next(flow.parameters()).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_it_stands_back_where_it_cannot_help():
    flow, x, context, _ = case({})
    assert is_fast(flow, x, context)
    assert not is_fast(flow, x, flow.project(context))
    with torch.no_grad():
        assert not is_fast(flow, x, context)
    with torch.autocast("cpu"):
        assert not is_fast(flow, x, context)
    spline, x, context, _ = case({"kind": "spline"})
    assert not is_fast(spline, x, context)
    assert not is_fast(flow.eval(), x, context)


def test_function_transforms_run_the_plain_flow():
    flow, x, context, _ = case({})
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x, c: flow(x, c)[0]))(x, context)
    expected = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(flow(x, context)[1], expected)


def test_a_flow_gives_its_memory_back(flow):
    step(flow)
    assert flow.blocks[0] in _WORKSPACES
    flow.eval()
    assert flow.blocks[0] not in _WORKSPACES
    flow.train()
    step(flow)
    count = len(_WORKSPACES)
    del flow
    # The fixture still holds it; another one that nobody holds is let go.
    other = build(dtype=torch.float32).train()
    step(other)
    assert len(_WORKSPACES) == count + 1
    del other
    assert len(_WORKSPACES) == count


def test_a_flow_that_was_not_initialised_is_refused():
    flow, x, context, _ = case({})
    with pytest.raises(Exception, match="not initialised"):
        CouplingFlow(flow.config).double().train()(x, context)


def test_the_global_generator_alone_decides_about_dropout():
    flow, *data = case({"dropout": 0.25})
    first, second = outcome(flow, *data), outcome(flow, *data)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.manual_seed(99)
    assert not torch.equal(flow(*data[:2])[0], first[0])


@pytest.mark.parametrize("options", [o for o in SHAPES.values() if o.get("conditional", True)] + [{"kind": "spline"}])
@pytest.mark.parametrize(("images", "n"), [(3, 7), (2, 700), (600, 1)])
def test_many_samples_an_image_are_those_of_the_plain_inverse(options, images, n):
    options = {k: v for k, v in options.items() if k != "conditional"}
    flow = build(**options)
    t = ConditionalFlow(flow.config, ConditionerConfig(z_shape=(5,), context_dim=3, width=8)).double()
    t.flow = flow
    v = torch.randn(images, n, flow.config.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    context = context_for(flow, images)
    got = t.inverse_many(v, context)
    torch.testing.assert_close(got, flow.eval().inverse(v, context.unsqueeze(1)), rtol=1e-9, atol=1e-9)


def test_many_samples_refuse_what_does_not_fit():
    t = ConditionalFlow(FlowConfig(dim=6, context_dim=3), ConditionerConfig(z_shape=(5,), context_dim=3))
    with pytest.raises(ShapeError, match="same B"):
        t.inverse_many(torch.zeros(4, 2, 6), torch.zeros(3, 3))
    with pytest.raises(ShapeError, match=r"\(\.\.\., 6\)"):
        t.inverse_many(torch.zeros(4, 2, 5), torch.zeros(4, 3))
    with pytest.raises(NotFittedError, match="not initialised"):
        t.inverse_many(torch.zeros(4, 2, 6), torch.zeros(4, 3))


def test_bf16_samples_are_close_to_exact_ones():
    flow = build(dtype=torch.float32, width=64, blocks=4, scale=0.5)
    t = ConditionalFlow(flow.config, ConditionerConfig(z_shape=(5,), context_dim=3, width=8))
    t.flow = flow
    v, context = torch.randn(4, 50, 6, generator=torch.Generator().manual_seed(1)), context_for(flow, 4).float()
    exact = t.inverse_many(v, context)
    with computing_in(t, torch.bfloat16):
        low = t.inverse_many(v, context)
    assert torch.equal(t.inverse_many(v, context), exact), "the precision was not put back"
    assert 0 < (low - exact).square().mean().sqrt() < 0.02 * exact.std()


def test_a_flow_trained_in_bf16_is_as_likely_as_one_trained_in_fp32():
    found = {}
    for dtype in (None, torch.bfloat16):
        flow = build(dtype=torch.float32, width=64, scale=0.0).train()
        set_compute_dtype(flow, dtype)
        optimizer = torch.optim.AdamW(flow.parameters(), lr=2e-3, fused=True)
        for k in range(150):
            x, context = rows(128, 6, seed=k, dtype=torch.float32).tanh(), context_for(flow, 128, seed=k).float()
            x[:, :3] += context
            optimizer.zero_grad()
            flow_nll(*flow(x, context)).mean().backward()
            optimizer.step()
        set_compute_dtype(flow, None)
        with torch.no_grad():
            x, context = rows(512, 6, seed=999, dtype=torch.float32).tanh(), context_for(flow, 512, seed=999).float()
            x[:, :3] += context
            found[dtype] = flow_nll(*flow.eval()(x, context)).mean().item()
            set_compute_dtype(flow, dtype)
            y, _ = flow(x, context)
            assert (flow.inverse(y, context) - x).abs().max() < (1e-4 if dtype is None else 0.05)
    assert abs(found[None] - found[torch.bfloat16]) < 0.1


def test_parametrized_weights_are_trained_through_their_parametrization(flow, no_fast_path):
    class Doubled(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    layer = flow.blocks[0].couplings[0].nets[0].input
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    step(flow)
    got = layer.parametrizations.weight.original.grad.clone()
    flow.zero_grad()
    no_fast_path(step, flow)
    expected = layer.parametrizations.weight.original.grad
    assert (got - expected).norm() < 0.05 * expected.norm()


def test_without_word_of_function_transforms_the_plain_flow_runs(monkeypatch):
    flow, x, context, _ = case({})
    monkeypatch.delattr(torch._C._functorch, "peek_interpreter_stack")
    assert not is_fast(flow, x, context)
    flow(x, context)[0].sum().backward()
    assert all(p.grad is not None for p in flow.parameters())


def test_without_a_count_of_references_gradients_get_fresh_memory(flow, monkeypatch):
    step(flow, seed=1)
    expected = gradients(flow)
    flow.zero_grad()
    monkeypatch.delattr(torch._C, "_storage_Use_Count")
    step(flow, seed=1)
    held = [p.grad for p in flow.parameters()]
    flow.zero_grad()
    step(flow, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(held, expected, strict=True))


def test_weights_are_copied_one_by_one_where_torch_cannot_copy_them_together(flow, monkeypatch):
    step(flow, seed=1)
    expected = gradients(flow)
    flow.zero_grad()
    monkeypatch.delattr(torch, "_foreach_copy_")
    step(flow, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(gradients(flow), expected, strict=True))
