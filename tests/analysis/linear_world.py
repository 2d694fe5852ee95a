"""A linear Gaussian world, whose every figure has a closed form: z, latents with the encoder's noise, and t for it."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from posthoc_inn.config import ConditionerConfig, FlowConfig
from posthoc_inn.flows import ConditionalFlow
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.rows.cache import Cache

Z, D, NOISE = 3, 4, 0.3
MIXING = torch.randn(D, Z, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
LEFT = torch.tril(torch.randn(D, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)) * 0.3
MIDDLE = torch.linspace(-1, 1, D, dtype=torch.float64)
OWN = LEFT @ LEFT.T + 0.3 * torch.eye(D, dtype=torch.float64)
"""Covariance of what z does not say of the encoder's mean."""
LEFT_OVER = OWN + NOISE**2 * torch.eye(D, dtype=torch.float64)
ALL = MIXING @ MIXING.T + LEFT_OVER


def world(n, seed):
    """z ~ N(0, 1), the encoder's mean linear in it and Gaussian, its deviation the same everywhere."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, Z, generator=g, dtype=torch.float64)
    rest = torch.randn(n, D, generator=g, dtype=torch.float64) @ torch.linalg.cholesky(OWN).T
    cache = Cache()
    mean = (MIDDLE + z @ MIXING.T + rest).float()
    cache.append(z=z.float(), mean=mean, std=torch.full_like(mean, NOISE))
    return cache


def flow_of(mixing, covariance):
    flow = ConditionalFlow(FlowConfig(dim=D, context_dim=2, kind="linear"), ConditionerConfig((Z,), 2, 8)).eval()
    flow.conditioner.fit_standardization([torch.tensor([[1.0] * Z, [-1.0] * Z])])  # deviation 1, mean 0
    flow.linear.set(MIDDLE, mixing, torch.linalg.cholesky(covariance))
    return flow


def pipeline_of(flow):
    return Pipeline(SimpleNamespace(), SimpleNamespace(), SimpleNamespace(), flow, torch.device("cpu"))


def fitted(train):
    flow = ConditionalFlow(FlowConfig(dim=D, context_dim=2, kind="linear"), ConditionerConfig((Z,), 2, 8)).eval()
    z, mean, std = (train[name].tensor() for name in ("z", "mean", "std"))
    flow.conditioner.fit_standardization([z])
    flow.fit_linear(lambda: [(z, mean, std)], z)
    return flow
