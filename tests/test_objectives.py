"""Each objective against a slow rewrite of the paper's equation and against a closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from posthoc_inn import objectives
from posthoc_inn.errors import ConfigError, ShapeError

DIMS = (3, 2, 1)


@pytest.fixture
def v():
    return torch.randn(7, 5, dtype=torch.float64) * 2 + 1


def test_standard_normal_nll_is_torchs_log_density(v):
    expected = -Normal(0.0, 1.0).log_prob(v).sum(-1)
    torch.testing.assert_close(objectives.standard_normal_nll(v), expected)
    torch.testing.assert_close(objectives.standard_normal_nll(v[None]), expected[None])


@pytest.mark.parametrize(("dim", "nats"), [(64, 90.8), (128, 181.6), (256, 363.2)])
def test_the_standard_normal_itself_costs_its_known_entropy(dim, nats):
    v = torch.randn(20000, dim)
    assert objectives.standard_normal_nll(v).mean().item() == pytest.approx(nats, abs=0.4)
    assert objectives.encoder_noise_entropy(torch.ones(3, dim)).tolist() == pytest.approx([nats] * 3, abs=0.06)


def test_flow_nll_is_the_change_of_variables(v):
    """x = A v + b is Gaussian with covariance A Aᵀ."""
    mixing = torch.randn(5, 5, dtype=torch.float64) + 2 * torch.eye(5)
    log_det = -torch.linalg.slogdet(mixing)[1].expand(7)
    exact = MultivariateNormal(torch.ones(5).double(), mixing @ mixing.T)
    torch.testing.assert_close(objectives.flow_nll(v, log_det), -exact.log_prob(v @ mixing.T + 1))


def test_flow_nll_equals_the_equation_in_numpy(v):
    log_det = torch.randn(7, dtype=torch.float64)
    for i, nats in enumerate(objectives.flow_nll(v, log_det).tolist()):
        squares = sum(float(x) ** 2 for x in v[i])
        assert nats == pytest.approx(0.5 * squares + 5 / 2 * math.log(2 * math.pi) - float(log_det[i]))


def test_flow_nll_refuses_a_log_det_of_another_shape(v):
    with pytest.raises(ShapeError, match=r"\(7, 1\); accepted is \(7,\)"):
        objectives.flow_nll(v, torch.zeros(7, 1))


def test_encoder_noise_entropy_is_torchs_entropy():
    std = torch.rand(7, 5, dtype=torch.float64) + 0.1
    torch.testing.assert_close(objectives.encoder_noise_entropy(std), Normal(0, std).entropy().sum(-1))


def test_kl_is_torchs_divergence(v):
    std = torch.rand(7, 5, dtype=torch.float64) + 0.1
    expected = kl_divergence(Normal(v, std), Normal(torch.zeros_like(v), 1.0)).sum(-1)
    torch.testing.assert_close(objectives.kl_to_standard_normal(v, std), expected)
    with pytest.raises(ShapeError, match=r"mean \(7, 5\), std \(7, 4\)"):
        objectives.kl_to_standard_normal(v, std[:, :4])


def pairs(n=8):
    draw = torch.randn(4, n, sum(DIMS), dtype=torch.float64)
    return draw[0], draw[1], draw[2, :, 0], draw[3, :, 0]


MASKS = [(a, b, c) for a in (False, True) for b in (False, True) for c in (False, True)]


@pytest.mark.parametrize("mask", MASKS, ids=lambda m: "".join("01"[x] for x in m))
def test_pair_nll_is_the_joint_gaussians(mask):
    """Covariance [[I, ρM], [ρM, I]], M the indicator of the shared factors' coordinates."""
    a, b, log_det_a, log_det_b = pairs()
    rho = 0.9
    indicator = torch.tensor(mask).double().repeat_interleave(torch.tensor(DIMS)).diag()
    identity = torch.eye(6, dtype=torch.float64)
    covariance = torch.cat(
        [torch.cat([identity, rho * indicator], dim=1), torch.cat([rho * indicator, identity], dim=1)]
    )
    joint = MultivariateNormal(torch.zeros(12).double(), covariance)
    expected = -joint.log_prob(torch.cat([a, b], dim=1)) - log_det_a - log_det_b
    shared = torch.tensor(mask).expand(8, 3)
    torch.testing.assert_close(objectives.pair_nll(a, b, shared, DIMS, rho, log_det_a, log_det_b), expected)
    torch.testing.assert_close(objectives.pair_nll(b, a, shared[0], DIMS, rho, log_det_b, log_det_a), expected)


def test_pair_nll_with_a_correlation_a_dimension_is_the_joint_gaussians():
    a, b, log_det_a, log_det_b = pairs()
    shared = torch.tensor(MASKS)
    rho = torch.tensor([0.9, -0.3, 0.0, 0.2, 0.99, 0.5], dtype=torch.float64)
    found = objectives.pair_nll(a, b, shared, DIMS, rho, log_det_a, log_det_b)
    for i in range(8):
        one = shared[i].double().repeat_interleave(torch.tensor(DIMS)) * rho
        identity = np.eye(6)
        covariance = np.block([[identity, np.diag(one)], [np.diag(one), identity]])
        expected = -multivariate_normal(np.zeros(12), covariance).logpdf(torch.cat([a[i], b[i]]).numpy())
        assert found[i].item() == pytest.approx(expected - float(log_det_a[i]) - float(log_det_b[i]))
    one_for_all = objectives.pair_nll(
        a, b, shared, DIMS, torch.full((6,), 0.9, dtype=torch.float64), log_det_a, log_det_b
    )
    torch.testing.assert_close(one_for_all, objectives.pair_nll(a, b, shared, DIMS, 0.9, log_det_a, log_det_b))


def test_pair_nll_equals_the_equation_in_numpy_with_one_mask_a_pair():
    a, b, log_det_a, log_det_b = pairs(8)
    shared, rho = torch.tensor(MASKS), 0.7
    found = objectives.pair_nll(a.split(DIMS, 1), b.split(DIMS, 1), shared, DIMS, rho, log_det_a, log_det_b)
    for i in range(8):
        total, n_shared, k = 6 * math.log(2 * math.pi), 0, 0
        for factor, width in enumerate(DIMS):
            for _ in range(width):
                x, y = float(a[i, k]), float(b[i, k])
                total += 0.5 * x**2
                if shared[i, factor]:
                    n_shared += 1
                    total += 0.5 * (y - rho * x) ** 2 / (1 - rho**2)
                else:
                    total += 0.5 * y**2
                k += 1
        total += n_shared / 2 * math.log(1 - rho**2)
        assert found[i].item() == pytest.approx(total - float(log_det_a[i]) - float(log_det_b[i]))


def test_a_pair_that_shares_nothing_costs_two_flows():
    a, b, log_det_a, log_det_b = pairs()
    apart = objectives.flow_nll(a, log_det_a) + objectives.flow_nll(b, log_det_b)
    nothing = torch.zeros(8, 3, dtype=torch.bool)
    torch.testing.assert_close(objectives.pair_nll(a, b, nothing, DIMS, 0.9, log_det_a, log_det_b), apart)
    torch.testing.assert_close(objectives.pair_nll(a, b, ~nothing, DIMS, 0.0, log_det_a, log_det_b), apart)


def test_pair_nll_has_finite_gradients_for_correlations_close_to_one():
    a, b, log_det_a, log_det_b = (t.float().requires_grad_() for t in pairs())
    objectives.pair_nll(a, b, torch.tensor(MASKS), DIMS, 0.9999, log_det_a, log_det_b).sum().backward()
    assert a.grad.isfinite().all()
    assert b.grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rho": 1.0}, ConfigError, r"rho must be in \[0, 1\), got 1.0"),
        ({"rho": -0.1}, ConfigError, "rho must be"),
        ({"rho": math.nan}, ConfigError, "rho must be"),
        ({"rho": torch.full((6,), -1.0)}, ConfigError, r"rho must be in \(-1, 1\) in each dimension"),
        ({"rho": torch.full((6,), math.nan)}, ConfigError, "in each dimension"),
        ({"rho": torch.zeros(5)}, ShapeError, r"rho has shape \(5,\); accepted is a number, or \(6,\)"),
        ({"shared": torch.ones(8, 3)}, ShapeError, "torch.float32.*boolean"),
        ({"shared": torch.ones(8, 2, dtype=torch.bool)}, ShapeError, r"\(8, 2\).*boolean \(B, 3\)"),
        ({"shared": torch.ones(7, 3, dtype=torch.bool)}, ShapeError, "7 rows for 8 pairs"),
        ({"factor_dims": (3, 2)}, ShapeError, r"\(8, 6\); accepted is \(B, 5\)"),
        ({"e_b": torch.zeros(7, 6)}, ShapeError, r"e_a \(8, 6\), e_b \(7, 6\)"),
        ({"log_det_b": torch.zeros(8, 1)}, ShapeError, r"log_det_b has shape \(8, 1\)"),
    ],
)
def test_pair_nll_refuses_what_does_not_fit(change, error, message):
    a, b, log_det_a, log_det_b = pairs()
    arguments = {
        "e_a": a,
        "e_b": b,
        "shared": torch.ones(8, 3, dtype=torch.bool),
        "factor_dims": DIMS,
        "rho": 0.9,
    }
    arguments |= {"log_det_a": log_det_a, "log_det_b": log_det_b}
    with pytest.raises(error, match=message):
        objectives.pair_nll(**(arguments | change))


def images():
    return torch.rand(2, 4, 3, 6, 6, dtype=torch.float64)


def test_half_precision_is_summed_in_float32():
    v = torch.full((1, 60000), 2.0, dtype=torch.float16)
    assert objectives.standard_normal_nll(v).item() == pytest.approx(
        60000 * (2 + 0.5 * math.log(2 * math.pi)), rel=1e-4
    )
    spread = torch.full((1, 60000), 2.0, dtype=torch.float16)
    assert objectives.encoder_noise_entropy(spread).item() == pytest.approx(
        60000 * (math.log(2) + 0.5 * math.log(2 * math.pi * math.e)), rel=1e-4
    )


def test_a_draw_is_the_same_from_a_seed_and_from_its_generator():
    mean, std = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.5, 2.0]])
    noise = torch.randn(1, 2, generator=torch.Generator().manual_seed(3))
    assert torch.equal(objectives.drawn(mean, std, 3), mean + std * noise)
    assert torch.equal(objectives.drawn(mean, std, torch.Generator().manual_seed(3)), mean + std * noise)


def test_the_interaction_is_that_of_a_two_way_analysis_of_variance_in_expectation():
    rng = np.random.default_rng(0)
    a, b, c = 1.5, 0.7, 0.4
    n = 40_000
    z, v = rng.normal(size=(1, 2, n, 2)) * a, rng.normal(size=(2, 1, n, 2)) * b
    values = torch.from_numpy(z + v + c * rng.normal(size=(2, 2, n, 2)))
    found = objectives.interaction_variance(values)
    assert found.shape == (n,)
    assert float(found.mean()) == pytest.approx(2 * c**2, rel=0.03)
    with pytest.raises(ShapeError, match="two z by two v"):
        objectives.interaction_variance(values[0])
