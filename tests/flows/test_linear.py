"""The linear Gaussian t: its closed form against NumPy and SciPy, known truth, and t on what it leaves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from random_subnets import randomize
from scipy.stats import multivariate_normal

from posthoc_inn.config import ConditionerConfig, FlowConfig
from posthoc_inn.errors import ConfigError, DataError, NotFittedError, ShapeError
from posthoc_inn.flows import ConditionalFlow, FactorFlow, coupling_of
from posthoc_inn.flows.linear_fit import FOLDS, components, fit_rows
from posthoc_inn.objectives import flow_nll

DIM = 4


def pairs(n, z_shape=(5,), dim=DIM, *, noise=0.3, seed=0):
    """z_bar linear in z, with correlated noise of a known entropy."""
    generator = torch.Generator().manual_seed(seed)
    p = math.prod(z_shape)
    mixing, turn = (torch.randn(k, dim, generator=torch.Generator().manual_seed(9)) / k**0.5 for k in (p, dim))
    z = torch.randn(n, *z_shape, generator=generator)
    eps = noise * torch.randn(n, dim, generator=generator) @ (turn + 2 * torch.eye(dim))
    return z * 3 + 1, z.flatten(1) @ mixing + eps + 0.7, noise * (turn + 2 * torch.eye(dim))


def fitted(kind="linear", z_shape=(5,), n=400, *, std=0.0, base=None, dtype=torch.float64, seed=0):
    config = FlowConfig(dim=DIM, context_dim=3, blocks=2, width=8, kind=kind)
    conditioner = ConditionerConfig(z_shape=z_shape, context_dim=3, width=8)
    t = ConditionalFlow(config, conditioner, coupling=coupling_of(config), base=base).to(dtype)
    z, z_bar, _ = pairs(n, z_shape, seed=seed)
    t.conditioner.fit_standardization([z])
    deviation = torch.full_like(z_bar, std)
    found = t.fit_linear(lambda: zip(z.split(150), z_bar.split(150), deviation.split(150), strict=True), z)
    t.initialize(z_bar, z)
    return t.eval(), z, z_bar, found


def nats(t, z, z_bar):
    return flow_nll(*t(z_bar, t.context(z)))


def test_the_closed_form_is_ridge_regression_with_the_covariance_of_rows_left_out():
    t, z, z_bar, found = fitted(n=90, std=0.2)
    x = ((z - z.mean(0)) / z.std(0, unbiased=False)).double().numpy()
    y, place = z_bar.double().numpy(), np.concatenate([(np.arange(150) % FOLDS)[:90]])

    def ridge(x, y):
        mx, my = x.mean(0), y.mean(0)
        b = np.linalg.solve((x - mx).T @ (x - mx) + found.ridge * len(x) * np.eye(5), (x - mx).T @ (y - my))
        return b, my - mx @ b

    left = np.zeros_like(y)
    for k in range(FOLDS):
        b, offset = ridge(x[place != k], y[place != k])
        left[place == k] = y[place == k] - x[place == k] @ b - offset
    s = left.T @ left / len(y) + 0.2**2 * np.eye(DIM)
    s = (1 - found.shrinkage) * s + found.shrinkage * np.diag(np.diag(s))
    b, offset = ridge(x, y)
    new_z, new, _ = pairs(20, seed=3)
    new_x = ((new_z - z.mean(0)) / z.std(0, unbiased=False)).double().numpy()
    wanted = [-multivariate_normal(row @ b + offset, s).logpdf(v) for row, v in zip(new_x, new.numpy(), strict=True)]
    np.testing.assert_allclose(nats(t, new_z, new).numpy(), wanted, rtol=1e-5)


def test_what_is_not_estimated_is_what_the_folds_say_of_all_that_is_tried(monkeypatch):
    from posthoc_inn.flows import linear_fit

    t, z, z_bar, found = fitted(n=60)
    rows = [(t.linear.features(t.conditioner.standardize(z.double())), z_bar, torch.zeros_like(z_bar))]
    for ridge in linear_fit.RIDGES:
        monkeypatch.setattr(linear_fit, "_least", lambda values, score, ridge=ridge: ridge if len(values) > 12 else 0.1)
        assert fit_rows(rows, rows[0][0]).nats > found.nats - 0.05


@pytest.mark.parametrize("kind", ["linear", "linear+affine"])
def test_on_linear_gaussian_rows_it_reaches_the_true_entropy(kind):
    t, *_ = fitted(kind, n=4000)
    z, z_bar, noise = pairs(4000, seed=5)
    entropy = 0.5 * DIM * math.log(2 * math.pi * math.e) + float(torch.linalg.slogdet(noise)[1])
    with torch.no_grad():
        found = nats(t, z, z_bar)
        v, _ = t(z_bar, t.context(z))
    assert float(found.mean()) == pytest.approx(entropy, abs=3 * float(found.std()) / 4000**0.5 + 0.01)
    assert float((torch.cov(v.T) - torch.eye(DIM)).abs().max()) < 0.1


def test_the_encoders_noise_is_counted_without_drawing_it():
    t, z, z_bar, _ = fitted(n=3000, std=0.5)
    plain, *_ = fitted(n=3000)
    covariance = [f.linear.scale @ f.linear.scale.T for f in (t, plain)]
    torch.testing.assert_close(covariance[0] - covariance[1], 0.25 * torch.eye(DIM).double(), atol=0.01, rtol=0)
    drawn = z_bar + 0.5 * torch.randn(z_bar.shape, generator=torch.Generator().manual_seed(4))
    assert nats(t, z, drawn).mean() < nats(plain, z, drawn).mean() - 0.3


@pytest.mark.parametrize("kind", ["linear", "linear+affine", "linear+spline"])
@pytest.mark.parametrize("on_e", [False, True])
def test_it_is_a_density_that_inverts(kind, on_e):
    base = None
    if on_e:
        base = FactorFlow(FlowConfig(dim=DIM, blocks=2, width=8), (3, 1)).double()
        base.initialize(torch.randn(64, DIM, generator=torch.Generator().manual_seed(1)).double() * 2)
        randomize(base, scale=0.3)
    t, z, z_bar, _ = fitted(kind, base=base)
    randomize(t.flow, scale=0.3)
    z_bar, context = z_bar[:6].double(), t.context(z[:6])
    assert context.shape == (6, t.context_dim)
    v, log_det = t(z_bar, context)
    torch.testing.assert_close(t.inverse(v, context), z_bar)
    for k in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda x, k=k: t(x, context[k])[0], z_bar[k])
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_det[k])
    many = v[:, None].expand(-1, 3, -1)
    torch.testing.assert_close(t.inverse_many(many, context), z_bar[:, None].expand(-1, 3, -1), atol=1e-5, rtol=1e-5)
    shared = t.project(context.unsqueeze(1))
    torch.testing.assert_close(t.inverse(many, shared), z_bar[:, None].expand(-1, 3, -1))


def test_couplings_after_the_linear_t_start_where_it_ends():
    linear, z, z_bar, _ = fitted("linear")
    t, *_ = fitted("linear+affine")
    torch.testing.assert_close(nats(t, z, z_bar), nats(linear, z, z_bar))
    part = t.linear_part()
    assert part.is_initialized
    assert not part.is_trained
    torch.testing.assert_close(nats(part, z, z_bar), nats(linear, z, z_bar))
    assert not any(True for _ in part.parameters())
    assert not fitted("linear+affine")[0].linear.state_dict().keys() - {"mean", "weight", "scale", "initialized"}
    flow_nll(*t.train()(z_bar, t.context(z))).mean().backward()
    assert all(p.grad is not None for p in t.flow.parameters())


@pytest.mark.parametrize("z_shape", [(70, 12, 12), (12, 1024), (9000,)])
def test_large_z_is_averaged_and_reduced(z_shape):
    t, z, z_bar, _ = fitted(z_shape=z_shape, n=40, dtype=torch.float32)
    assert t.linear.weight.shape[1] <= 9000
    assert t.linear.pooled_shape[0] in (z_shape[0], 8)
    assert torch.isfinite(nats(t, z, z_bar)).all()


def test_principal_components_are_those_of_a_singular_value_decomposition():
    x = torch.randn(60, 9, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 10)
    found = components(x, 3)
    wanted = torch.linalg.svd(x - x.mean(0), full_matrices=False)[2][:3]
    torch.testing.assert_close(found.T @ found, wanted.T @ wanted, atol=1e-4, rtol=1e-3)
    assert components(x, 9) is None


def test_latents_that_do_not_vary_or_repeat_each_other_still_give_a_map():
    z, z_bar, _ = pairs(50)
    z_bar[:, 1], z_bar[:, 2] = 2.0, z_bar[:, 0]
    config = FlowConfig(dim=DIM, context_dim=3, kind="linear")
    t = ConditionalFlow(config, ConditionerConfig(z_shape=(5,), context_dim=3))
    t.conditioner.fit_standardization([z])
    t.fit_linear(lambda: [(z, z_bar, torch.zeros_like(z_bar))], z)
    v, log_det = t(z_bar, t.context(z))
    assert torch.isfinite(v).all()
    assert torch.isfinite(log_det).all()
    torch.testing.assert_close(t.inverse(v, t.context(z)), z_bar)


def test_what_it_cannot_do_is_said():
    t, z, z_bar, _ = fitted()
    with pytest.raises(ConfigError, match="'affine' has no linear model"):
        ConditionalFlow(FlowConfig(dim=4, context_dim=3), ConditionerConfig((5,), 3)).fit_linear(lambda: [], z)
    with pytest.raises(ConfigError, match="e needs a coupling as its kind, got 'linear'"):
        FactorFlow(FlowConfig(dim=4, kind="linear"), (3, 1))
    with pytest.raises(ConfigError, match=r"without couplings.*linear\+affine"):
        coupling_of(t.flow.config)(t.flow.config, 0, generator=torch.Generator())
    with pytest.raises(ShapeError, match=r"accepted is \(\.\.\., 4\)"):
        t(z_bar, torch.zeros(len(z), 7))
    with pytest.raises(DataError, match="at least 2 rows"):
        t.fit_linear(lambda: [(z[:1], z_bar[:1], z_bar[:1])], z)
    with pytest.raises(DataError, match="NaN"):
        t.fit_linear(lambda: [(z, z_bar * float("nan"), z_bar)], z)
    fresh = ConditionalFlow(t.flow.config, t.conditioner.config)
    fresh.conditioner.fit_standardization([z])
    with pytest.raises(NotFittedError, match="linear map"):
        fresh.context(z)


@pytest.mark.parametrize(
    "spoil", [lambda s: s + s.T, lambda s: -s, lambda s: s * 0, lambda s: s * float("nan"), lambda s: s * 1e-20]
)
def test_a_file_cannot_hold_a_map_without_a_way_back(spoil):
    t, *_ = fitted()
    state = t.state_dict()
    state["linear.scale"] = spoil(state["linear.scale"])
    with pytest.raises(RuntimeError, match=r"linear\.scale is not lower triangular"):
        t.load_state_dict(state)


def test_blocks_are_trained_on_what_is_left_of_rows_that_the_regression_has_not_seen():
    t, z, z_bar, found = fitted("linear+affine", z_shape=(30,), n=80)
    index = torch.arange(80)
    left_out = t.left_out(z, found, index)
    for k in range(FOLDS):
        others = index % FOLDS != k
        x = t.conditioner.standardize(z.double())
        mx, my = x[others].mean(0), z_bar[others].double().mean(0)
        gram = (x[others] - mx).T @ (x[others] - mx) + found.ridge * int(others.sum()) * torch.eye(30).double()
        b = torch.linalg.solve(gram, (x[others] - mx).T @ (z_bar[others] - my))
        torch.testing.assert_close(left_out[~others].double(), (x[~others] - mx) @ b + my, atol=1e-4, rtol=1e-4)
    context = t.context(z, left_out)
    torch.testing.assert_close(context[:, -DIM:], left_out.double())
    torch.testing.assert_close(context[:, :-DIM], t.context(z)[:, :-DIM])
    # The rows themselves are closer to their own line than new ones, and to the others' as close as new ones.
    new_z, new, _ = pairs(2000, (30,), seed=8)
    own, theirs = t.context(z)[:, -DIM:], t.context(new_z)[:, -DIM:]
    seen, unseen, fresh = ((y - m).square().mean() for y, m in ((z_bar, own), (z_bar, left_out), (new, theirs)))
    assert seen < 0.8 * fresh < unseen


def test_copies_of_an_image_do_not_make_it_too_sure_of_itself():
    """60 images, 40 painted copies of each: folds of the rows hold copies of all of them."""
    g = torch.Generator().manual_seed(0)
    images, copies, features, dim = 60, 40, 80, 6

    def rows(count):
        z, y = torch.randn(count, features, generator=g), torch.randn(count, dim, generator=g)
        y = y + z[:, :dim]
        x = (z[:, None] + 0.05 * torch.randn(count, copies, features, generator=g)).flatten(0, 1)
        y = (y[:, None] + 0.3 * torch.randn(count, copies, dim, generator=g)).flatten(0, 1)
        return x, y, torch.zeros_like(y)

    train, apart, new = rows(images), rows(100), rows(300)

    def held_out(found):
        residual = new[1].double() - found.mean - new[0].double() @ found.weight.T
        normal = torch.distributions.MultivariateNormal(torch.zeros(dim).double(), scale_tril=found.scale)
        return -float(normal.log_prob(residual).mean())

    truth = 0.5 * dim * (1 + math.log(2 * math.pi * 1.09))
    alone = 0.5 * dim * (1 + math.log(2 * math.pi * 2.09))  # without a look at z
    misled, judged = held_out(fit_rows([train], train[0])), held_out(fit_rows([train], train[0], [apart]))
    assert misled > alone + 1
    assert truth < judged < alone + 0.5


def test_ridge_and_shrinkage_are_chosen_together():
    """Latents that all but determine each other bear no shrinkage; under a shrinkage the wrong ridge looks best."""
    g = torch.Generator().manual_seed(0)
    copies, features, dim = 40, 80, 8
    mix = torch.randn(3, dim, generator=g)

    def rows(count):
        z, y = torch.randn(count, features, generator=g), torch.randn(count, 3, generator=g)
        y = (y + z[:, :3]) @ mix
        x = (z[:, None] + 0.05 * torch.randn(count, copies, features, generator=g)).flatten(0, 1)
        y = (y[:, None] + 0.02 * torch.randn(count, copies, dim, generator=g)).flatten(0, 1)
        return x, y, torch.zeros_like(y)

    train, apart, new = rows(60), rows(100), rows(300)
    found = fit_rows([train], train[0], [apart])
    residual = new[1].double() - found.mean - new[0].double() @ found.weight.T
    normal = torch.distributions.MultivariateNormal(torch.zeros(dim).double(), scale_tril=found.scale)
    alone = torch.distributions.MultivariateNormal(train[1].double().mean(0), torch.cov(train[1].double().T))
    assert -normal.log_prob(residual).mean() < -alone.log_prob(new[1].double()).mean() + 0.4
