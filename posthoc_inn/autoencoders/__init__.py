"""Pairs of encoder E and decoder D: the built-in ones, and an adapter for a user's own."""

from posthoc_inn.autoencoders.adapter import GivenAutoencoder, as_autoencoder
from posthoc_inn.autoencoders.base import Autoencoder, TrainableAutoencoder
from posthoc_inn.autoencoders.conv import SIZES, ConvAutoencoder

__all__ = ["SIZES", "Autoencoder", "ConvAutoencoder", "GivenAutoencoder", "TrainableAutoencoder", "as_autoencoder"]
