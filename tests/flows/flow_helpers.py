"""Flows for the tests: small, initialised, and with last layers that are not zero."""

from __future__ import annotations

import torch
from random_subnets import randomize

from posthoc_inn.config import FlowConfig
from posthoc_inn.flows import CouplingFlow

CONTEXT_DIM = 3


def rows(n, dim, *, seed=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return (torch.randn(n, dim, generator=generator, dtype=torch.float64) @ mixing + 1.5).to(dtype)


def build(kind="affine", *, conditional=True, dim=6, dtype=torch.float64, scale=1.0, **options):
    options = {"blocks": 2, "width": 16, "bins": 5, "tail": 2.5} | options
    config = FlowConfig(dim=dim, context_dim=CONTEXT_DIM if conditional else 0, kind=kind, **options)
    flow = randomize(CouplingFlow(config), scale=scale).to(dtype)
    flow.initialize(rows(256, dim), context_for(flow, 256))
    return flow


def context_for(flow, n, *, seed=3):
    if not flow.config.context_dim:
        return None
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, flow.config.context_dim, generator=generator, dtype=torch.float64)
