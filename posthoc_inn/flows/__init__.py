"""Invertible networks: t given a representation (MSC eq. 1-5), and e into semantic factors (MSC eq. 6)."""

from __future__ import annotations

from posthoc_inn.flows.actnorm import ActNorm
from posthoc_inn.flows.block import CouplingFactory
from posthoc_inn.flows.conditional import ConditionalFlow
from posthoc_inn.flows.conditioner import Conditioner
from posthoc_inn.flows.coupling import AffineCoupling, Coupling, ProjectedContext
from posthoc_inn.flows.coupling_flow import COUPLINGS, CouplingFlow, without_dropout
from posthoc_inn.flows.factor import FactorFlow
from posthoc_inn.flows.permutation import Permutation
from posthoc_inn.flows.registered import coupling_of
from posthoc_inn.flows.spline import SplineCoupling, rational_quadratic_spline
from posthoc_inn.flows.subnet import computing_in, set_compute_dtype

__all__ = [
    "COUPLINGS",
    "ActNorm",
    "AffineCoupling",
    "ConditionalFlow",
    "Conditioner",
    "Coupling",
    "CouplingFactory",
    "CouplingFlow",
    "FactorFlow",
    "Permutation",
    "ProjectedContext",
    "SplineCoupling",
    "computing_in",
    "coupling_of",
    "rational_quadratic_spline",
    "set_compute_dtype",
    "without_dropout",
]
