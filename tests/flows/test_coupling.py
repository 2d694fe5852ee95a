"""An affine block, rewritten slowly in NumPy from MSC eq. 17-18, and the shapes of one coupling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flow_helpers import build, context_for, rows
from random_subnets import randomize

from posthoc_inn.config import FlowConfig
from posthoc_inn.errors import ConfigError, ShapeError
from posthoc_inn.flows import AffineCoupling
from posthoc_inn.flows.subnet import ACTIVATIONS, Dropout, Subnet, make_activation


def numpy_subnet(net, x, h):
    weight = {name: p.detach().numpy() for name, p in net.named_parameters()}

    def silu(a):
        return a / (1 + np.exp(-a))

    joined = np.concatenate([weight["input.weight"], weight["context.weight"]], axis=1)
    a = silu(joined @ np.concatenate([x, h]) + weight["input.bias"])
    for i in range(len(net.hidden)):
        a = silu(weight[f"hidden.{i}.weight"] @ a + weight[f"hidden.{i}.bias"])
    return weight["output.weight"] @ a + weight["output.bias"]


def numpy_scale_and_shift(coupling, kept, h, bound):
    if len(coupling.nets) == 2:
        raw, shift = (numpy_subnet(net, kept, h) for net in coupling.nets)
    else:
        raw, shift = np.split(numpy_subnet(coupling.nets[0], kept, h), 2)
    return np.exp(bound * np.tanh(raw / bound)), shift


def numpy_block(block, x, h, bound):
    """Actnorm, x̃_1 = x_1 s_1(x_2, h) + t_1(x_2, h), x̃_2 = x_2 s_2(x̃_1, h) + t_2(x̃_1, h), shuffle."""
    log_scale = block.actnorm.log_scale.detach().numpy()
    x = (x + block.actnorm.shift.detach().numpy()) * np.exp(log_scale)
    half = len(x) // 2
    x_1, x_2 = x[:half], x[half:]
    s_1, t_1 = numpy_scale_and_shift(block.couplings[0], x_2, h, bound)
    x_1 = x_1 * s_1 + t_1
    s_2, t_2 = numpy_scale_and_shift(block.couplings[1], x_1, h, bound)
    x_2 = x_2 * s_2 + t_2
    joined = np.concatenate([x_1, x_2])
    shuffled = np.array([joined[p] for p in block.permutation.permutation.tolist()])
    return shuffled, log_scale.sum() + np.log(s_1).sum() + np.log(s_2).sum()


@pytest.mark.parametrize("separate_nets", [False, True], ids=["merged", "separate"])
@pytest.mark.parametrize("dim", [6, 5])
def test_a_flow_equals_the_papers_equations_in_numpy(separate_nets, dim):
    flow = build(dim=dim, separate_nets=separate_nets, depth=2, scale_bound=0.8)
    x, context = rows(4, dim), context_for(flow, 4)
    y, log_det = flow(x, context)
    for i in range(4):
        out, total = x[i].numpy(), 0.0
        for block in flow.blocks:
            out, term = numpy_block(block, out, context[i].numpy(), 0.8)
            total += term
        np.testing.assert_allclose(y[i].detach().numpy(), out, atol=1e-12)
        np.testing.assert_allclose(log_det[i].item(), total, atol=1e-12)


@pytest.mark.parametrize(("index", "moved"), [(0, slice(0, 2)), (1, slice(2, 5))])
def test_a_coupling_moves_one_half_and_keeps_the_other(index, moved):
    coupling = randomize(AffineCoupling(FlowConfig(dim=5, width=8), index))
    x = torch.randn(4, 5)
    changed = (coupling(x)[0] != x).all(0)
    assert changed.nonzero().flatten().tolist() == list(range(5))[moved]


def test_a_coupling_alone_checks_its_shapes():
    coupling = AffineCoupling(FlowConfig(dim=5, width=8, context_dim=3))
    with pytest.raises(ShapeError, match=r"x has shape \(2, 4\)"):
        coupling(torch.zeros(2, 4), torch.zeros(2, 3))
    with pytest.raises(ShapeError, match=r"No context was given"):
        coupling.inverse(torch.zeros(2, 5))
    with pytest.raises(ShapeError, match=r"accepted is \(\.\.\., 3\)"):
        coupling.project(torch.zeros(2, 4))


def test_depth_counts_hidden_layers_and_the_last_layer_starts_at_zero():
    net = Subnet(4, 0, 6, width=8, depth=3, activation="relu", dropout=0.0, generator=torch.Generator())
    assert [tuple(p.shape) for n, p in net.named_parameters() if n.endswith("weight")] == [
        (8, 4),
        (8, 8),
        (8, 8),
        (6, 8),
    ]
    assert not net(torch.randn(2, 4)).any()
    with pytest.raises(ConfigError, match=r"without a context"):
        net.project(torch.zeros(2, 3))


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_every_activation_can_be_had(name):
    flow = build(activation=name, blocks=1)
    x, context = rows(4, 6), context_for(flow, 4)
    torch.testing.assert_close(flow.inverse(flow(x, context)[0], context), x)


def test_an_unknown_activation_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"no activation 'tanh'.*silu"):
        make_activation("tanh")
    with pytest.raises(ConfigError, match=r"activation must be one of"):
        FlowConfig(dim=4, activation="tanh")


def test_hidden_layers_start_near_unit_scale():
    net = Subnet(32, 32, 8, width=256, depth=4, activation="silu", dropout=0.0, generator=torch.Generator())
    seen = []
    net.hidden[-1].register_forward_hook(lambda module, inputs, output: seen.append(output.std().item()))
    net(torch.randn(512, 32), net.project(torch.randn(512, 32)))
    assert 0.3 < seen[0] < 3


def test_dropout_keeps_the_mean_drops_its_share_and_draws_every_element_alone():
    layer = Dropout(0.1).train()
    torch.manual_seed(0)
    out = layer(torch.ones(400, 333))
    dropped = (out == 0).float()
    assert abs(float(dropped.mean()) - 26 / 256) < 3 * (0.1 * 0.9 / out.numel()) ** 0.5
    assert abs(float(out.mean()) - 1) < 5e-3
    assert dropped.mean(0).std() < 1.3 * (0.1 * 0.9 / 400) ** 0.5
    assert abs(float((dropped[:, 1:] * dropped[:, :-1]).mean()) - (26 / 256) ** 2) < 1e-3
    x = torch.ones(5, requires_grad=True)
    torch.manual_seed(1)
    y = layer(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
