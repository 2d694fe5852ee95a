"""Semantic concepts: where pairs of images that share one come from, and the factors that e learns from them."""

from posthoc_inn.concepts.attributes import AttributeSource, attributes_of, read_table
from posthoc_inn.concepts.given import GivenPairs, JoinedSources, WithRandom
from posthoc_inn.concepts.model import RANDOM, RESIDUAL, ConceptModel, Space
from posthoc_inn.concepts.request import LabelsOf, as_source, length_of
from posthoc_inn.concepts.sizes import factor_sizes, shared_score

__all__ = [
    "RANDOM",
    "RESIDUAL",
    "AttributeSource",
    "ConceptModel",
    "GivenPairs",
    "JoinedSources",
    "LabelsOf",
    "Space",
    "WithRandom",
    "as_source",
    "attributes_of",
    "factor_sizes",
    "length_of",
    "read_table",
    "shared_score",
]
