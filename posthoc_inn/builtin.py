"""What the core itself registers, through the plugin hooks; its factories import what is heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from posthoc_inn.config import AutoencoderConfig, FlowConfig, ImageSpec
from posthoc_inn.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.data import Dataset


def _small_cnn(*, weights: str | None, num_classes: int | None) -> nn.Module:
    from posthoc_inn.builtin_models import small_cnn

    return small_cnn(weights=weights, num_classes=num_classes)


def _color_digits(root: str | None, *, train: bool, seed: int, draws: int = 1) -> Dataset[Any]:
    from posthoc_inn.datasets.color_digits import ColorDigits

    return ColorDigits(train=train, seed=seed, draws=draws)


def _conv(config: AutoencoderConfig) -> nn.Module:
    from posthoc_inn.autoencoders import ConvAutoencoder

    return ConvAutoencoder(config)


def _affine(config: FlowConfig, index: int, *, generator: torch.Generator) -> nn.Module:
    from posthoc_inn.flows import COUPLINGS

    return COUPLINGS["affine"](config, index, generator=generator)


def _spline(config: FlowConfig, index: int, *, generator: torch.Generator) -> nn.Module:
    from posthoc_inn.flows import COUPLINGS

    return COUPLINGS["spline"](config, index, generator=generator)


@hookimpl
def register_backbones(register: Register[nn.Module]) -> None:
    """Register a small network for small images."""
    register(
        "small_cnn",
        _small_cnn,
        spec=ImageSpec(size=(28, 28), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        layers=["stem", "stage1", "stage2", "stage3", "pool", "head"],
        licence="MIT",
        description="four convolutions, for 28 to 64 px",
    )


@hookimpl
def register_autoencoders(register: Register[nn.Module]) -> None:
    """Register the convolutional Gaussian autoencoder."""
    register(
        "conv",
        _conv,
        sizes=[28, 32, 64, 128],
        channels=[1, 3],
        licence="MIT",
        reference="Making Sense of CNNs (ECCV 2020), appendix A.1 and tab. S1",
        description="convolutional Gaussian autoencoder with learned output variance; channel statistics apart",
    )
    register(
        "msc",
        _conv,
        sizes=[28, 32, 64, 128],
        channels=[1, 3],
        licence="MIT",
        reference="Making Sense of CNNs (ECCV 2020), appendix A.1 and tab. S1",
        description="tab. S1 as printed: batch norm, leaky ReLU, tanh",
    )


@hookimpl
def register_flows(register: Register[nn.Module]) -> None:
    """Register the two couplings."""
    register(
        "affine",
        _affine,
        licence="MIT",
        reference="Making Sense of CNNs (ECCV 2020), appendix A.2",
        description="affine coupling, log-scale bounded by tanh",
    )
    register(
        "spline",
        _spline,
        licence="MIT",
        reference="Neural Spline Flows (NeurIPS 2019)",
        description="monotonic rational-quadratic spline coupling",
    )


@hookimpl
def register_datasets(register: Register[Dataset[Any]]) -> None:
    """Register the data set that needs no file."""
    register(
        "color-digits",
        _color_digits,
        image_size=28,
        channels=3,
        classes=[str(digit) for digit in range(10)],
        needs_dir=False,
        fixed_split=False,
        attribute_names=["digit", "foreground", "background"],
        options={"draws": "how many colourings of each digit"},
        licence="BSD-3-Clause (scikit-learn's copy of UCI's optical digits, CC BY 4.0)",
        reference="https://archive.ics.uci.edu/dataset/80",
        description="scikit-learn's 1,797 handwritten digits at 28 px in random colours",
    )
