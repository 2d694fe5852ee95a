"""torchvision's classifiers and data sets for posthoc_inn; only the factories import torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from posthoc_inn.config import AutoencoderConfig, ImageSpec
from posthoc_inn.plugins.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import Dataset

_DIGITS = [str(digit) for digit in range(10)]
_CLOTHES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
_CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
_DOWNLOAD = {"download": "let torchvision download the files into the directory (false)"}
_ALEXNET = [
    *(f"features.{i}" for i in (0, 3, 6, 8, 10, 12)),
    "avgpool",
    "classifier.1",
    "classifier.4",
    "classifier.6",
]
_RESNET = ["relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc"]
LISTED: dict[str, list[str]] = {
    "alexnet": _ALEXNET,
    "resnet18": _RESNET,
    "resnet50": _RESNET,
    "resnet101": _RESNET,
    "squeezenet1_0": ["features.2", *(f"features.{i}" for i in (3, 4, 5, 7, 8, 9, 10, 12)), "classifier.1"],
    "squeezenet1_1": ["features.2", *(f"features.{i}" for i in (3, 4, 6, 7, 9, 10, 11, 12)), "classifier.1"],
}
"""Networks listed by name -> layers worth looking at (those of MSC, and the stages between)."""


def _factory(name: str) -> Callable[..., nn.Module]:
    def build(*, weights: str | None, num_classes: int | None) -> nn.Module:
        from posthoc_inn_torchvision.backbones import build_classifier

        return build_classifier(name, weights=weights, num_classes=num_classes)

    return build


def _metadata(name: str) -> dict[str, Any]:
    def spec(weights: str | None) -> ImageSpec:
        from posthoc_inn_torchvision.backbones import image_spec

        return image_spec(name, weights)

    return {
        "spec": spec,
        "layers": LISTED.get(name, []),
        "licence": "BSD-3-Clause (code); published weights: see torchvision's notes",
        "reference": f"torchvision.models.{name}",
    }


def _names() -> list[str]:
    from posthoc_inn_torchvision.backbones import classifier_names

    return classifier_names()


def _open_factory(name: str) -> Callable[..., nn.Module] | None:
    from posthoc_inn_torchvision.backbones import is_classifier

    return _factory(name) if is_classifier(name) else None


@hookimpl
def register_backbones(register: Register[nn.Module]) -> None:
    """Register the papers' networks by name, and every other classifier as ``torchvision:NAME``."""
    for name in LISTED:
        register(name, _factory(name), **_metadata(name))
    register.open_ended("torchvision", names=_names, factory=_open_factory, metadata=_metadata)


def _photos(config: AutoencoderConfig) -> nn.Module:
    from posthoc_inn_torchvision.pair import PhotoAutoencoder

    return PhotoAutoencoder(config)


@hookimpl
def register_autoencoders(register: Register[nn.Module]) -> None:
    """Register the papers' pair for photographs."""
    register(
        "msc-photos",
        _photos,
        sizes=[128],
        channels=[1, 3],
        licence="BSD-3-Clause (torchvision's ResNet)",
        reference="Making Sense of CNNs (ECCV 2020), appendix A.1 and tab. S7",
        description="ResNet-101 encoder and BigGAN-shaped decoder, 128 px, for GPUs",
    )


def _mnist(root: str, *, train: bool, seed: int, download: bool = False) -> Dataset[Any]:
    from posthoc_inn_torchvision.arrays import ArrayImages, idx_pair

    images, labels = idx_pair(root, "MNIST", train=train, download=download)
    return ArrayImages(images[:, None], labels, _DIGITS)


def _fashion_mnist(root: str, *, train: bool, seed: int, download: bool = False) -> Dataset[Any]:
    from posthoc_inn_torchvision.arrays import ArrayImages, idx_pair

    images, labels = idx_pair(root, "FashionMNIST", train=train, download=download)
    return ArrayImages(images[:, None], labels, _CLOTHES)


def _color_mnist(root: str, *, train: bool, seed: int, draws: int = 1, download: bool = False) -> Dataset[Any]:
    from posthoc_inn.datasets.color_digits import ColorizedDigits
    from posthoc_inn_torchvision.arrays import idx_pair

    images, labels = idx_pair(root, "MNIST", train=train, download=download)
    return ColorizedDigits(images, labels, seed=seed, draws=draws, stream=0 if train else 1)


def _cifar10(root: str, *, train: bool, seed: int, download: bool = False) -> Dataset[Any]:
    from posthoc_inn_torchvision.arrays import read_cifar10

    return read_cifar10(root, train=train, download=download)


def _celeba(root: str, *, train: bool, seed: int, size: int = 64, download: bool = False) -> Dataset[Any]:
    from posthoc_inn_torchvision.faces import CelebA

    return CelebA(root, train=train, seed=seed, size=size, download=download)


def _image_folder(root: str, *, train: bool, seed: int, **options: Any) -> Dataset[Any]:
    from posthoc_inn_torchvision.folders import ImageFolder

    return ImageFolder(root, train=train, seed=seed, **options)


@hookimpl
def register_datasets(register: Register[Dataset[Any]]) -> None:
    """Register what torchvision's users have on disk; nothing is downloaded unless asked for."""
    _register_small_gray(register)
    _register_photographs(register)


def _register_small_gray(register: Register[Dataset[Any]]) -> None:
    """Register MNIST, MNIST in colours, and Fashion-MNIST."""
    register(
        "mnist",
        _mnist,
        image_size=28,
        channels=1,
        classes=_DIGITS,
        needs_dir=True,
        fixed_split=True,
        options=_DOWNLOAD,
        reference="http://yann.lecun.com/exdb/mnist",
        description="70,000 handwritten digits, grey",
    )
    register(
        "color-mnist",
        _color_mnist,
        image_size=28,
        channels=3,
        classes=_DIGITS,
        needs_dir=True,
        fixed_split=True,
        attribute_names=["digit", "foreground", "background"],
        options={"draws": "how many colourings of each digit (1)", **_DOWNLOAD},
        reference="A Disentangling Invertible Interpretation Network (CVPR 2020), section 4.1",
        description="MNIST in random foreground and background colours",
    )
    register(
        "fashion-mnist",
        _fashion_mnist,
        image_size=28,
        channels=1,
        classes=_CLOTHES,
        needs_dir=True,
        fixed_split=True,
        options=_DOWNLOAD,
        licence="MIT",
        reference="https://github.com/zalandoresearch/fashion-mnist",
        description="70,000 pieces of clothing, grey",
    )


def _register_photographs(register: Register[Dataset[Any]]) -> None:
    """Register CIFAR-10, CelebA, and folders of the user's own."""
    register(
        "cifar10",
        _cifar10,
        image_size=32,
        channels=3,
        classes=_CIFAR10,
        needs_dir=True,
        fixed_split=True,
        options=_DOWNLOAD,
        reference="https://www.cs.toronto.edu/~kriz/cifar.html",
        description="60,000 photographs of ten kinds of things",
    )
    register(
        "celeba",
        _celeba,
        image_size=64,
        channels=3,
        classes=[],
        needs_dir=True,
        fixed_split=False,
        options={"size": "height and width in pixels (64)", **_DOWNLOAD},
        licence="non-commercial research only",
        reference="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
        description="faces with forty binary attributes",
    )
    register(
        "image-folder",
        _image_folder,
        image_size=None,
        channels=3,
        classes=[],
        needs_dir=True,
        fixed_split=False,
        options={
            "size": "height and width in pixels (64)",
            "channels": "1 or 3 (3)",
            "held_out": "share of each class held out, where there are no train and test directories (0.1)",
        },
        description="your own images, one directory a class",
    )
