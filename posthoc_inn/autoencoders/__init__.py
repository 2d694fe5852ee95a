"""Pairs of encoder E and decoder D: the built-in ones, adapters for a user's own, and generators without an encoder."""

from posthoc_inn.autoencoders.adapter import GivenAutoencoder, as_autoencoder
from posthoc_inn.autoencoders.base import Autoencoder, TrainableAutoencoder, latent_shape_of
from posthoc_inn.autoencoders.conv import SIZES, ConvAutoencoder
from posthoc_inn.autoencoders.draws import Draws, draws_of, judged
from posthoc_inn.autoencoders.gaussian import GaussianAutoencoder
from posthoc_inn.autoencoders.generator import GivenGenerator
from posthoc_inn.autoencoders.residual import ResidualAutoencoder

__all__ = [
    "SIZES",
    "Autoencoder",
    "ConvAutoencoder",
    "Draws",
    "GaussianAutoencoder",
    "GivenAutoencoder",
    "GivenGenerator",
    "ResidualAutoencoder",
    "TrainableAutoencoder",
    "as_autoencoder",
    "draws_of",
    "judged",
    "latent_shape_of",
]
