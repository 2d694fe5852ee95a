from __future__ import annotations

import math

import pytest
import safetensors.torch
import torch
from random_subnets import randomize

from posthoc_inn.config import ConditionerConfig, FlowConfig
from posthoc_inn.errors import ConfigError, NotFittedError
from posthoc_inn.flows import ConditionalFlow, FactorFlow, set_compute_dtype
from posthoc_inn.objectives import flow_nll
from posthoc_inn.protocols import Flow


def make(z_shape=(5,), *, seed=0, **options):
    flow = FlowConfig(dim=4, context_dim=8, width=16, seed=seed, **({"blocks": 2} | options))
    return ConditionalFlow(flow, ConditionerConfig(z_shape=z_shape, context_dim=8, width=16, seed=seed))


@pytest.fixture
def fitted():
    t = randomize(make()).double()
    z_bar, z = torch.randn(64, 4, dtype=torch.float64), torch.randn(64, 5, dtype=torch.float64) + 2
    t.conditioner.fit_standardization([z])
    t.initialize(z_bar, z)
    return t, z_bar, z


def test_v_is_recovered_and_reusable_with_another_z(fitted):
    t, z_bar, z = fitted
    context = t.context(z)
    v, log_det = t(z_bar, context)
    assert log_det.shape == (64,)
    torch.testing.assert_close(t.inverse(v, context), z_bar)
    other = t.context(z.flip(0))
    moved = t.inverse(v, other)
    assert not torch.allclose(moved, z_bar)
    torch.testing.assert_close(t(moved, other)[0], v)


def test_a_gradient_reaches_every_parameter_through_context_and_flow(fitted):
    t, z_bar, z = fitted
    flow_nll(*t(z_bar, t.context(z))).mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in t.parameters())


def test_everything_learned_is_saved(fitted):
    t, z_bar, z = fitted
    other = make(seed=7).double()
    assert not other.is_initialized
    other.load_state_dict(safetensors.torch.load(safetensors.torch.save(t.state_dict())))
    assert other.is_initialized
    assert torch.equal(other(z_bar, other.context(z))[0], t(z_bar, t.context(z))[0])


def test_initialising_needs_the_standardisation_first():
    t = make()
    with pytest.raises(NotFittedError, match=r"fit_standardization"):
        t.initialize(torch.randn(8, 4), torch.randn(8, 5))


def test_widths_of_the_context_must_agree():
    with pytest.raises(ConfigError, match=r"width 3.*width 128"):
        ConditionalFlow(FlowConfig(dim=4, context_dim=3), ConditionerConfig(z_shape=(5,)))


def test_it_satisfies_the_protocol():
    assert isinstance(make(), Flow)


def test_the_compute_dtype_reaches_flow_and_conditioner():
    t = make((6, 8, 8))
    set_compute_dtype(t, torch.bfloat16)
    layers = {name: m for name, m in t.named_modules() if hasattr(m, "compute_dtype")}
    assert len(layers) == 2 * 2 * 4 + 2
    # What reads z_bar, and what gives scale and shift, stays exact.
    exact = {name for name, m in layers.items() if m.compute_dtype is None}
    assert exact == {name for name in layers if name.endswith((".input", ".output"))}
    assert {layers[name].compute_dtype for name in layers.keys() - exact} == {torch.bfloat16}


def test_a_linear_gaussian_conditional_is_learned_to_its_entropy():
    """z̄ = A z + 0.3 ε: the best likelihood is the noise's entropy, and v must not depend on z."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(5, 4, generator=generator) / math.sqrt(5)

    def draw(n):
        z = torch.randn(n, 5, generator=generator)
        return z @ mixing + 0.3 * torch.randn(n, 4, generator=generator), z

    t = make()
    z_bar, z = draw(1024)
    t.conditioner.fit_standardization([z])
    t.initialize(z_bar, z)
    optimizer = torch.optim.Adam(t.parameters(), lr=5e-3)
    for _ in range(200):
        z_bar, z = draw(128)
        loss = flow_nll(*t(z_bar, t.context(z))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    z_bar, z = draw(4096)
    with torch.no_grad():
        v, log_det = t(z_bar, t.context(z))
    entropy = 4 * (0.5 * math.log(2 * math.pi * math.e) + math.log(0.3))
    assert flow_nll(v, log_det).mean().item() == pytest.approx(entropy, abs=0.25)
    assert v.std(0).tolist() == pytest.approx([1.0] * 4, abs=0.1)
    correlation = torch.corrcoef(torch.cat([v, z], dim=1).T)[:4, 4:]
    assert correlation.abs().max() < 0.2


def factor_flow(dim, seed=5):
    e = FactorFlow(FlowConfig(dim=dim, blocks=2, width=8, seed=seed), (dim - 1, 1))
    e.initialize(torch.randn(128, dim) * 2 + 1)
    for parameter in e.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return e


@pytest.mark.parametrize("kind", ["affine", "spline"])
def test_t_on_the_factors_of_e_is_still_a_density_and_inverts(kind):
    e = factor_flow(4).double()
    config = FlowConfig(dim=4, context_dim=3, blocks=2, width=8, kind=kind)
    t = ConditionalFlow(config, ConditionerConfig(z_shape=(5,), context_dim=3, width=8), base=e).double()
    z_bar, z = torch.randn(64, 4).double(), torch.randn(64, 5).double()
    t.conditioner.fit_standardization([z])
    t.initialize(z_bar, z)
    for name, parameter in t.flow.named_parameters():
        if "blocks" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape).double()
    t.eval()
    context = t.context(z)
    with torch.no_grad():
        v, log_det = t(z_bar, context)
        assert torch.allclose(t.inverse(v, context), z_bar, atol=1e-6)
        many = t.inverse_many(v[:, None].expand(-1, 3, -1), context)
        assert torch.allclose(many, z_bar[:, None].expand(-1, 3, -1), atol=1e-6)
    for k in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda x, k=k: t(x[None], context[k : k + 1])[0][0], z_bar[k])
        assert torch.allclose(torch.linalg.slogdet(jacobian)[1], log_det[k], atol=1e-9)


def test_training_t_leaves_e_as_it_was():
    e = factor_flow(4)
    before = {k: v.clone() for k, v in e.state_dict().items()}
    config = FlowConfig(dim=4, context_dim=3, blocks=2, width=8, dropout=0.2)
    t = ConditionalFlow(config, ConditionerConfig(z_shape=(5,), context_dim=3, width=8))
    t.set_base(e)
    z_bar, z = torch.randn(64, 4), torch.randn(64, 5)
    t.conditioner.fit_standardization([z])
    t.initialize(z_bar, z)
    t.train()
    assert not t.base.training
    optimizer = torch.optim.Adam([p for p in t.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        v, log_det = t(z_bar, t.context(z))
        optimizer.zero_grad()
        (v.square().sum(1) / 2 - log_det).mean().backward()
        optimizer.step()
    assert all(torch.equal(before[k], v) for k, v in e.state_dict().items())
    assert all(p.grad is None for p in e.parameters())


def test_an_e_that_does_not_fit_t_is_refused():
    config = FlowConfig(dim=4, context_dim=3, blocks=1, width=8)
    t = ConditionalFlow(config, ConditionerConfig(z_shape=(5,), context_dim=3, width=8))
    with pytest.raises(ConfigError, match="e takes 6 values, t 4"):
        t.set_base(factor_flow(6))
    with pytest.raises(NotFittedError, match="e was never fitted"):
        t.set_base(FactorFlow(FlowConfig(dim=4, blocks=1, width=8), (3, 1)))


def test_on_the_factors_of_e_t_starts_as_the_identity():
    e = factor_flow(4)
    config = FlowConfig(dim=4, context_dim=3, blocks=3, width=8)
    t = ConditionalFlow(config, ConditionerConfig(z_shape=(5,), context_dim=3, width=8), base=e)
    z_bar, z = 50 * torch.randn(64, 4), torch.randn(64, 5)
    t.conditioner.fit_standardization([z])
    t.initialize(z_bar, z)
    t.eval()
    v, log_det = t(z_bar, t.context(z))
    factors, expected = e(z_bar)
    assert torch.allclose(v.sort(dim=1).values, torch.cat(factors, 1).sort(dim=1).values, atol=1e-4)  # permuted
    assert torch.allclose(log_det, expected, atol=1e-4)
