"""Questions asked of fitted parts; each returns a result with plain data, most of them a figure and a caption too."""

from posthoc_inn.analysis.accuracy import model_accuracy
from posthoc_inn.analysis.adversarial import Attack
from posthoc_inn.analysis.attack import AttackedLayer, AttackView, attack_view
from posthoc_inn.analysis.calibration import Calibration, calibration
from posthoc_inn.analysis.ceilings import Ceiling, concept_ceilings
from posthoc_inn.analysis.duplicates import Duplicates, duplicates
from posthoc_inn.analysis.edit_gallery import EditedConcept, EditGallery, edit_gallery
from posthoc_inn.analysis.faithfulness import Faithfulness, faithfulness
from posthoc_inn.analysis.frames import read_frames, save_animation
from posthoc_inn.analysis.frechet import FeatureNetwork, FrechetDistance, frechet_distance
from posthoc_inn.analysis.generative import GenerativeQuality, generate, generative_quality
from posthoc_inn.analysis.groups import GroupComparison, GroupOfImages, compare_groups
from posthoc_inn.analysis.invariance import ExplainedByInvariances, explained_by_invariances, explained_share
from posthoc_inn.analysis.inversion import Inverse, Inversion, inversion
from posthoc_inn.analysis.ladder import Rung
from posthoc_inn.analysis.likelihood import Likelihood, likelihood
from posthoc_inn.analysis.maps import InvarianceMaps, LayerMaps, invariance_maps
from posthoc_inn.analysis.measure import AutoencoderQuality, Resolution, autoencoder_quality, measure, resolution
from posthoc_inn.analysis.outside import Clipped, Outside, OutsideImage, clipped, outside, outside_of
from posthoc_inn.analysis.pair_shares import PairShare, PairShares, pair_shares, paired_rows
from posthoc_inn.analysis.preimages import preimages
from posthoc_inn.analysis.recombination import Recombination, recombine, recombine_frames
from posthoc_inn.analysis.refining import Refinement, check_steps, guided, moved, refinement
from posthoc_inn.analysis.refits import Refits, refits
from posthoc_inn.analysis.relevance import ConceptRelevance, ConceptShares, Share, concept_relevance, variance_shares
from posthoc_inn.analysis.response import FactorResponse, Response, ornstein_uhlenbeck, response
from posthoc_inn.analysis.response_embedding import ResponseEmbedding, response_embedding
from posthoc_inn.analysis.results import Result
from posthoc_inn.analysis.retrieval import Retrieval, retrieval
from posthoc_inn.analysis.samples import Samples, samples
from posthoc_inn.analysis.sensitivity import ConceptSensitivity, concept_sensitivity
from posthoc_inn.analysis.walk_density import WalkDensity, concept_nll, walk_density

__all__ = [
    "Duplicates",
    "Attack",
    "AttackView",
    "AttackedLayer",
    "AutoencoderQuality",
    "Calibration",
    "Ceiling",
    "Clipped",
    "ConceptRelevance",
    "ConceptSensitivity",
    "ConceptShares",
    "EditGallery",
    "EditedConcept",
    "ExplainedByInvariances",
    "FactorResponse",
    "Faithfulness",
    "FeatureNetwork",
    "FrechetDistance",
    "GenerativeQuality",
    "GroupComparison",
    "GroupOfImages",
    "InvarianceMaps",
    "Inverse",
    "Inversion",
    "LayerMaps",
    "Likelihood",
    "PairShare",
    "PairShares",
    "Outside",
    "OutsideImage",
    "Recombination",
    "Refinement",
    "Refits",
    "Resolution",
    "Response",
    "Result",
    "ResponseEmbedding",
    "Retrieval",
    "Rung",
    "Samples",
    "Share",
    "WalkDensity",
    "attack_view",
    "autoencoder_quality",
    "calibration",
    "clipped",
    "check_steps",
    "compare_groups",
    "concept_ceilings",
    "concept_nll",
    "concept_relevance",
    "concept_sensitivity",
    "duplicates",
    "edit_gallery",
    "explained_by_invariances",
    "explained_share",
    "faithfulness",
    "frechet_distance",
    "generate",
    "generative_quality",
    "guided",
    "invariance_maps",
    "inversion",
    "likelihood",
    "measure",
    "model_accuracy",
    "moved",
    "ornstein_uhlenbeck",
    "pair_shares",
    "paired_rows",
    "preimages",
    "outside",
    "outside_of",
    "read_frames",
    "recombine",
    "recombine_frames",
    "refinement",
    "refits",
    "resolution",
    "response",
    "response_embedding",
    "retrieval",
    "samples",
    "save_animation",
    "variance_shares",
    "walk_density",
]
