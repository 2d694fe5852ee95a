"""The flows we compare with are what they claim: as large as ours, with exact likelihoods, sampling what they learn."""

from __future__ import annotations

import math

import pytest
import torch

from posthoc_inn.config import FlowConfig
from posthoc_inn.flows import ActNorm, CouplingFlow

NAMES = ["FrEIA", "nflows", "zuko", "plain PyTorch"]
CONFIG = FlowConfig(dim=6, context_dim=5, blocks=3, width=16, depth=3)


def make(load, name, config=CONFIG):
    if name != "plain PyTorch":
        pytest.importorskip(name, reason="the benchmark extra is not installed (pip install -e '.[bench]')")
    contender = load("contenders").build([name], config)[name].double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # zeros and small weights would hide mistakes
        for p in contender.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return contender


def batch(rows):
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(rows, n, generator=generator, dtype=torch.float64) for n in (CONFIG.dim, CONFIG.context_dim))


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_as_many_as_ours(load, name, separate):
    if name == "zuko" and separate:
        pytest.skip("zuko has no such flow")
    config = CONFIG.replace(separate_nets=separate)
    theirs = sum(p.numel() for p in make(load, name, config).parameters() if p.requires_grad)
    flow = CouplingFlow(config)
    ours = sum(p.numel() for p in flow.parameters())
    actnorm = sum(p.numel() for m in flow.modules() if isinstance(m, ActNorm) for p in m.parameters())
    assert theirs == ours - (0 if name == "plain PyTorch" else actnorm)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_loss_is_the_change_of_variables_with_an_autograd_jacobian(load, name, separate):
    if name == "zuko" and separate:
        pytest.skip("zuko has no such flow")
    contender = make(load, name, CONFIG.replace(separate_nets=separate))
    z_bar, context = batch(4)
    nll = []
    for x, c in zip(z_bar, context, strict=True):
        to_base = lambda row, c=c: contender.to_base(row[None], c[None])[0]  # noqa: E731
        v = to_base(x)
        log_det = torch.linalg.slogdet(torch.autograd.functional.jacobian(to_base, x)).logabsdet
        nll.append(0.5 * (v @ v + len(v) * math.log(2 * math.pi)) - log_det)
    torch.testing.assert_close(contender.loss(z_bar, context), torch.stack(nll).mean(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_samples_come_from_the_flow_given_their_own_context(load, name):
    contender = make(load, name).float()
    _, context = batch(3)
    context = context.float()
    with torch.no_grad():
        samples = contender.sample(context, 3000)
        assert samples.shape == (3, 3000, CONFIG.dim)
        for rows, c in zip(samples, context, strict=True):
            v = contender.to_base(rows, c.expand(len(rows), -1))
            assert v.mean(0).abs().max() < 0.1
            assert (v.std(0) - 1).abs().max() < 0.1
