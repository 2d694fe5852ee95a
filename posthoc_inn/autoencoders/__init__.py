"""Pairs of encoder E and decoder D: the built-in ones, adapters for a user's own, and generators without an encoder."""

from posthoc_inn.autoencoders.adapter import GivenAutoencoder, as_autoencoder
from posthoc_inn.autoencoders.base import Autoencoder, TrainableAutoencoder
from posthoc_inn.autoencoders.conv import SIZES, ConvAutoencoder
from posthoc_inn.autoencoders.draws import Draws, draws_of, judged
from posthoc_inn.autoencoders.generator import GivenGenerator

__all__ = [
    "SIZES",
    "Autoencoder",
    "ConvAutoencoder",
    "Draws",
    "GivenAutoencoder",
    "GivenGenerator",
    "TrainableAutoencoder",
    "as_autoencoder",
    "draws_of",
    "judged",
]
