"""Questions asked of fitted parts; each returns a result with plain data."""

from posthoc_inn.analysis.faithfulness import Faithfulness, faithfulness
from posthoc_inn.analysis.invariance import ExplainedByInvariances, explained_by_invariances, explained_share
from posthoc_inn.analysis.likelihood import Likelihood, likelihood
from posthoc_inn.analysis.measure import AutoencoderQuality, autoencoder_quality, measure
from posthoc_inn.analysis.relevance import ConceptRelevance, ConceptShares, Share, concept_relevance, variance_shares

__all__ = [
    "AutoencoderQuality",
    "ConceptRelevance",
    "ConceptShares",
    "ExplainedByInvariances",
    "Faithfulness",
    "Likelihood",
    "Share",
    "autoencoder_quality",
    "concept_relevance",
    "explained_by_invariances",
    "explained_share",
    "faithfulness",
    "likelihood",
    "measure",
    "variance_shares",
]
