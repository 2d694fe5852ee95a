"""A fit: what is asked, what it is prepared from, its stages, and what it leaves behind."""

from __future__ import annotations

from posthoc_inn.fit.concepts import ConceptFit
from posthoc_inn.fit.parts import FitResult, Parts
from posthoc_inn.fit.plan import Plan
from posthoc_inn.fit.preparing import prepare
from posthoc_inn.fit.request import FitRequest, Subject
from posthoc_inn.fit.stages import Fit

__all__ = ["ConceptFit", "Fit", "FitRequest", "FitResult", "Parts", "Plan", "Subject", "prepare"]
