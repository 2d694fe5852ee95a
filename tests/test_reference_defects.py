"""Defects of the papers' public reference code, each kept out by name (flows, objectives, global state)."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch

from posthoc_inn.config import ConditionerConfig, FlowConfig
from posthoc_inn.errors import NotFittedError, ShapeError
from posthoc_inn.flows import COUPLINGS, ActNorm, ConditionalFlow, CouplingFlow, Permutation
from posthoc_inn.objectives import flow_nll, pair_nll


def fitted_t(z_shape=(5,)):
    config = FlowConfig(dim=4, context_dim=8, blocks=2, width=16)
    t = ConditionalFlow(config, ConditionerConfig(z_shape=z_shape, context_dim=8, width=16))
    z = torch.randn(32, *z_shape)
    t.conditioner.fit_standardization([z])
    t.initialize(torch.randn(32, 4), z)
    return t


@pytest.mark.parametrize("z_shape", [(5,), (5, 1, 1), (3, 8, 8), (4, 6)], ids=["flat", "pixel", "map", "tokens"])
def test_defect_1_sampling_embeds_the_condition_once_and_works_for_flat_z(z_shape):
    t = fitted_t(z_shape)
    calls = []
    t.conditioner.register_forward_hook(lambda module, inputs, output: calls.append(output))
    context = t.context(torch.randn(3, *z_shape))
    samples = t.inverse(torch.randn(3, 7, 4), context.unsqueeze(1))
    assert samples.shape == (3, 7, 4)
    assert len(calls) == 1


@pytest.mark.parametrize("kind", sorted(COUPLINGS))
def test_defect_2_no_layer_that_moves_volume_reports_a_log_determinant_of_zero(kind):
    flow = CouplingFlow(FlowConfig(dim=4, blocks=2, width=8, kind=kind))
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    flow.double().initialize(torch.randn(64, 4) * 3, force=True)
    x = torch.randn(4, dtype=torch.float64)
    modules = [m for block in flow.blocks for m in (block.actnorm, *block.couplings, block.permutation)]
    for module in modules:
        y, log_det = module(x)
        exact = torch.linalg.slogdet(torch.autograd.functional.jacobian(lambda r, m=module: m(r)[0], x))[1]
        torch.testing.assert_close(log_det.double(), exact, atol=1e-9, rtol=1e-9)
        x = y.detach()


def test_defect_3_actnorm_refuses_a_batch_of_one_instead_of_turning_to_nan():
    norm = ActNorm(3)
    with pytest.raises(ShapeError, match=r"at least 2"):
        norm.initialize(torch.randn(1, 3))
    assert not norm.is_initialized
    assert all(p.isfinite().all() for p in norm.parameters())


def test_defect_3_a_batch_in_eval_mode_without_gradients_does_not_initialise_again():
    norm = ActNorm(3)
    norm.initialize(torch.randn(64, 3))
    before = norm.shift.clone(), norm.log_scale.clone()
    norm.eval()
    with torch.no_grad():
        norm(torch.randn(64, 3) * 100 + 7)
        norm.inverse(torch.randn(64, 3) * 100 + 7)
    assert torch.equal(norm.shift, before[0])
    assert torch.equal(norm.log_scale, before[1])


@pytest.mark.parametrize("z_shape", [(5,), (5, 1, 1), (3, 8, 8), (4, 6)], ids=["flat", "pixel", "map", "tokens"])
def test_defect_3_a_batch_of_one_keeps_its_dimensions(z_shape):
    t = fitted_t(z_shape)
    context = t.context(torch.randn(1, *z_shape))
    v, log_det = t(torch.randn(1, 4), context)
    assert (context.shape, v.shape, log_det.shape) == ((1, 8), (1, 4), (1,))
    assert t.inverse(v, context).shape == (1, 4)


def test_defect_4_a_flow_that_was_never_initialised_does_not_invert_silently():
    flow = CouplingFlow(FlowConfig(dim=4, blocks=1, width=8))
    with pytest.raises(NotFittedError, match=r"not initialised"):
        flow.inverse(torch.randn(2, 4))
    with pytest.raises(NotFittedError, match=r"not initialised"):
        ActNorm(4).inverse(torch.randn(2, 4))


def test_defect_7_losses_keep_their_constants():
    zero = torch.zeros(1)
    v = torch.zeros(1, 64)
    assert flow_nll(v, zero).item() == pytest.approx(32 * math.log(2 * math.pi))
    shared = torch.tensor([[False, True]])
    expected = 64 * math.log(2 * math.pi) + 10 / 2 * math.log(1 - 0.9**2)
    assert pair_nll(v, v, shared, (54, 10), 0.9, zero, zero).item() == pytest.approx(expected, rel=1e-6)


def test_defect_8_permutations_come_from_their_own_seed():
    torch.manual_seed(1)
    first = Permutation(64, seed=3)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = Permutation(64, seed=3)
    assert torch.equal(first.permutation, second.permutation)
    assert torch.equal(torch.get_rng_state(), before)


PROBE = """
import importlib, json, pkgutil, random, sys
import numpy, torch
import rich.style  # rich itself numbers its styles from Python's generator

def state():
    return {
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "gradients": torch.is_grad_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "cudnn": [getattr(torch.backends.cudnn, k) for k in ("enabled", "benchmark", "deterministic")],
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "torch generator": torch.get_rng_state().tolist(),
        "numpy generator": str(numpy.random.get_state()),
        "python generator": str(random.getstate()),
    }

before = state()
import posthoc_inn
names = [m.name for m in pkgutil.walk_packages(posthoc_inn.__path__, "posthoc_inn.")]
names = [name for name in names if not name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
after = state()
print(json.dumps({"modules": len(names), "changed": [k for k in before if before[k] != after[k]]}))
"""


def test_defect_10_importing_sets_no_global_switch_and_draws_no_random_number():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["modules"] > 10
    assert found["changed"] == []


def test_defect_11_all_but_the_residual_can_be_said():
    """The reference codes 'all but k' as −k, and −0 is 0: no label for pairs that differ in the residual."""
    rho, dims = 0.9, (2, 1, 1)
    a, b, zero = torch.randn(1, 4), torch.randn(1, 4), torch.zeros(1)
    for differs in range(3):
        shared = torch.arange(3)[None] != differs
        coordinates = shared[0].repeat_interleave(torch.tensor(dims))
        given_a = torch.where(coordinates, (b - rho * a) ** 2 / (1 - rho**2) + math.log(1 - rho**2), b**2)
        expected = 0.5 * (a**2 + given_a).sum() + 4 * math.log(2 * math.pi)
        assert pair_nll(a, b, shared, dims, rho, zero, zero).item() == pytest.approx(expected.item(), rel=1e-5)
