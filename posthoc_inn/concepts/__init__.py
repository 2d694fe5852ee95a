"""Semantic concepts: where pairs of images that share one come from, and the factors that e learns from them."""

from posthoc_inn.concepts.attributes import AttributeSource, attributes_of, read_table
from posthoc_inn.concepts.directions import shared_directions
from posthoc_inn.concepts.folders import FolderPairs
from posthoc_inn.concepts.given import GivenPairs, JoinedSources, WithRandom
from posthoc_inn.concepts.model import RANDOM, RESIDUAL, ConceptModel, Space
from posthoc_inn.concepts.request import LabelsOf, as_source, length_of
from posthoc_inn.concepts.sizes import factor_sizes, shared_score
from posthoc_inn.concepts.sketches import SketchSource
from posthoc_inn.concepts.stylize import StyleTransfer, Stylizer

__all__ = [
    "RANDOM",
    "RESIDUAL",
    "AttributeSource",
    "ConceptModel",
    "FolderPairs",
    "GivenPairs",
    "JoinedSources",
    "LabelsOf",
    "SketchSource",
    "Space",
    "StyleTransfer",
    "Stylizer",
    "WithRandom",
    "as_source",
    "attributes_of",
    "factor_sizes",
    "length_of",
    "read_table",
    "shared_directions",
    "shared_score",
]
