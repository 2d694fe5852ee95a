"""What the core itself registers, through the plugin hooks; its factories import what is heavy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posthoc_inn.config import AutoencoderConfig, FlowConfig, ImageSpec
from posthoc_inn.plugins.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.utils.data import Dataset

    from posthoc_inn.protocols import ConceptSource


def _small_cnn(*, weights: str | None, num_classes: int | None) -> nn.Module:
    from posthoc_inn.builtin.small_cnn import small_cnn

    return small_cnn(weights=weights, num_classes=num_classes)


def _color_digits(root: str | None, *, train: bool, seed: int, draws: int = 1) -> Dataset[Any]:
    from posthoc_inn.datasets.color_digits import ColorDigits

    return ColorDigits(train=train, seed=seed, draws=draws)


def _conv(config: AutoencoderConfig) -> nn.Module:
    from posthoc_inn.autoencoders import ConvAutoencoder

    return ConvAutoencoder(config)


def _residual(config: AutoencoderConfig) -> nn.Module:
    from posthoc_inn.autoencoders import ResidualAutoencoder

    return ResidualAutoencoder(config)


def _affine(config: FlowConfig, index: int, *, generator: torch.Generator) -> nn.Module:
    from posthoc_inn.flows import COUPLINGS

    return COUPLINGS["affine"](config, index, generator=generator)


def _spline(config: FlowConfig, index: int, *, generator: torch.Generator) -> nn.Module:
    from posthoc_inn.flows import COUPLINGS

    return COUPLINGS["spline"](config, index, generator=generator)


def _conv_coupling(config: FlowConfig, index: int, *, generator: torch.Generator) -> nn.Module:
    from posthoc_inn.flows import COUPLINGS

    return COUPLINGS["conv"](config, index, generator=generator)


def _transformer(config: FlowConfig, index: int, *, generator: torch.Generator) -> nn.Module:
    from posthoc_inn.flows import COUPLINGS

    return COUPLINGS["transformer"](config, index, generator=generator)


def _linear(config: FlowConfig, index: int, *, generator: torch.Generator) -> nn.Module:
    from posthoc_inn.flows.registered import no_coupling

    return no_coupling(config, index, generator=generator)


def _ssim() -> Callable[[Tensor, Tensor], Tensor]:
    from posthoc_inn.builtin.ssim import ssim

    return ssim


def _attribute_source(data: Dataset[Any], *, seed: int, names: str = "", agree: str = "drawn") -> ConceptSource:
    from posthoc_inn.concepts import AttributeSource, attributes_of

    wanted = [name.strip() for name in names.split(",") if name.strip()]
    return AttributeSource(attributes_of(data), concepts=wanted or None, agree=agree)  # type: ignore[arg-type]


def _sketches(
    data: Dataset[Any],
    *,
    seed: int,
    sketch_a: str,
    sketch_b: str,
    name: str,
    backbone: str,
    weights: str | None = None,
    images: int = 500,
    size: int | None = None,
    style_weight: float = 10.0,
    steps: int = 200,
    sharing: bool = True,
    cache: str | None = None,
) -> ConceptSource:
    from posthoc_inn.concepts.sketches import SketchSource
    from posthoc_inn.concepts.stylize import StyleTransfer

    stylize = StyleTransfer.from_backbone(backbone, weights=weights, style_weight=style_weight, steps=steps, seed=seed)
    return SketchSource(
        data,
        sketch_a,
        sketch_b,
        name=name,
        stylize=stylize,
        images=images,
        size=size,
        sharing=sharing,
        cache=cache,
        seed=seed,
    )


def _folders(data: Dataset[Any], *, seed: int, root: str, size: int, channels: int = 3) -> ConceptSource:
    from posthoc_inn.concepts.folders import FolderPairs

    return FolderPairs(root, size=size, channels=channels, data=data)  # type: ignore[arg-type]


def _analysis(name: str) -> Callable[[], Any]:
    def build() -> Any:
        from posthoc_inn.analysis import by_name

        return getattr(by_name, name)

    return build


@dataclass(frozen=True)
class Analysis:
    """One of the papers' analyses.

    Attributes:
        name: What users type.
        function: Its function in `posthoc_inn.analysis.by_name`.
        needs: What must have been fitted.
        description: What it is, in a line.
        options: Name -> one line of help.
    """

    name: str
    function: str
    needs: tuple[str, ...]
    description: str
    options: Mapping[str, str]


ANALYSES = (
    Analysis(
        "explained-by-invariances",
        "explained",
        ("t",),
        "MSC eq. 19: share of the latent's variance that the layer ignores",
        {"samples": "latents in all (10000)"},
    ),
    Analysis(
        "pair-shares",
        "pair_shares",
        ("t", "e"),
        "what the layer determines of each concept, by pairs that share it; and what e's factors hold",
        {
            "concepts": "labels, attributes, names of them or a table (those of the data called as e's concepts)",
            "samples": "latents in all (10000)",
        },
    ),
    Analysis(
        "concept-relevance",
        "relevance",
        ("t", "e"),
        "MSC eq. 20: total effect of z on each concept's whole factor, beside the first-order share",
        {"samples": "latents in all (10000)"},
    ),
    Analysis(
        "samples",
        "samples",
        ("t",),
        "MSC eq. 2: images that share the layer's representation, and what the model predicts for them",
        {
            "images": "images (10)",
            "samples": "samples an image (8)",
            "refine": "gradient steps that bring each sample nearer to its image (0)",
        },
    ),
    Analysis(
        "edits",
        "edits",
        ("e",),
        "MSC eq. 7: each concept taken from another image",
        {"images": "images edited (200)"},
    ),
    Analysis(
        "invariance-maps",
        "maps",
        ("t",),
        "MSC fig. 3: where samples vary",
        {"images": "images (32)", "samples": "samples an image (32)"},
    ),
    Analysis(
        "recombination",
        "recombination",
        ("t",),
        "what the layer sees of one image with what it ignores of another",
        {"images": "images (6)"},
    ),
    Analysis(
        "attack",
        "attack",
        ("t",),
        "MSC fig. 5: what an adversarial attack changes of z (needs captum)",
        {"images": "images (64)", "method": "fgsm or pgd (fgsm)", "epsilon": "in units of [0, 1] (8/255)"},
    ),
    Analysis(
        "response",
        "response",
        ("e",),
        "IIN 4.2: how the model responds to a walk in each concept, through the decoder",
        {"images": "images (60)", "steps": "steps of the walk (60)"},
    ),
    Analysis(
        "response-map",
        "response_map",
        ("e",),
        "IIN fig. 10: walks in the concepts among the latents, by UMAP (needs umap-learn)",
        {"images": "images (500)", "steps": "steps of a walk (50)"},
    ),
    Analysis(
        "sensitivity",
        "sensitivity",
        ("e",),
        "MSC fig. 7: how far an edit of each concept moves the representation",
        {"images": "images (200)"},
    ),
    Analysis(
        "generative",
        "generative",
        ("e",),
        "IIN tab. 2: samples of e by their Fréchet distance (needs torchmetrics)",
        {"images": "images (1000)"},
    ),
    Analysis(
        "inversion",
        "inversion",
        ("t", "train"),
        "MSC tab. 1: samples of t beside a decoder trained on z, and pixels optimised to have it (needs torchmetrics)",
        {
            "train": "training images, on the command line --train-data",
            "images": "images, half of which are inverted (400)",
            "few": "images that pixels are optimised for (16)",
            "methods": "decoder, optimization, or both, separated by a comma (both)",
            "steps": "training steps of the decoder (1500)",
            "optimization_steps": "gradient steps on pixels (200)",
            "network": "registered network that the Fréchet distance is over (Inception, or the layer itself)",
            "network_weights": "its weights: a file or a published name (random)",
            "network_layer": "its layer (output)",
            "out": "directory for the decoder's checkpoints, which a second run goes on from",
        },
    ),
)


@hookimpl
def register_analyses(register: Register[Any]) -> None:
    """Register the papers' analyses."""
    for one in ANALYSES:
        register(
            one.name,
            _analysis(one.function),
            needs=one.needs,
            description=one.description,
            options=dict(one.options),
            licence="MIT",
        )


@hookimpl
def register_concept_sources(register: Register[ConceptSource]) -> None:
    """Register sources of pairs."""
    register(
        "attribute-table",
        _attribute_source,
        options={
            "names": "attributes of the data set, separated by commas (all)",
            "agree": "drawn, or all: mark every category that happens to agree (drawn)",
        },
        licence="MIT",
        description="pairs of images with the same value of an attribute of the data set's own",
    )
    register(
        "sketches",
        _sketches,
        options={
            "sketch_a": "file of the first sketch",
            "sketch_b": "file of the second sketch",
            "name": "name of the concept in which the sketches differ",
            "backbone": "registered network whose features carry the style",
            "weights": "its weights: a file or a published name (random)",
            "images": "images that are painted in either style (500)",
            "size": "side of the painted images in pixels (that of the data)",
            "style_weight": "weight of the style against the content (10)",
            "steps": "training steps of the painter, a sketch (200)",
            "sharing": "draw pairs that share a sketch too (true)",
            "cache": "directory that keeps the painted images",
        },
        licence="MIT",
        reference="A Disentangling Invertible Interpretation Network (CVPR 2020), section 3.2; Johnson (ECCV 2016)",
        description="two sketches define a concept: images painted in the style of each",
    )
    register(
        "folders",
        _folders,
        options={
            "root": "directory with CONCEPT/a and CONCEPT/b, pairs by file name; not-CONCEPT where they differ",
            "size": "side of the images in pixels",
            "channels": "1 or 3 (3)",
        },
        licence="MIT",
        description="folders of pairs of images that share, or differ in, a concept",
    )


@hookimpl
def register_image_metrics(register: Register[Callable[[Tensor, Tensor], Tensor]]) -> None:
    """Register structural similarity."""
    register(
        "ssim",
        _ssim,
        higher_is_better=True,
        min_size=11,
        licence="MIT",
        reference="Wang, Bovik, Sheikh, Simoncelli: Image quality assessment (IEEE TIP 13(4), 2004)",
        description="structural similarity: 1 for equal images, near 0 for unrelated ones",
    )


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
    """Register the Gaussian autoencoders: those whose latent is a vector, and the one whose latent is a map."""
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
    register(
        "residual",
        _residual,
        latent="map",
        channels=[1, 3],
        licence="MIT",
        reference="Making Sense of CNNs (ECCV 2020), appendix A.1; Latent Diffusion Models (CVPR 2022), appendix",
        description="residual blocks around a latent that is a map and keeps places: for photographs",
    )


@hookimpl
def register_flows(register: Register[nn.Module]) -> None:
    """Register the couplings, and the t that has none."""
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
    register(
        "conv",
        _conv_coupling,
        licence="MIT",
        reference="Glow (NeurIPS 2018), Jet (TMLR 2025)",
        description="affine coupling over codes that are maps: checkerboard and channels, convolutional subnets",
    )
    register(
        "transformer",
        _transformer,
        licence="MIT",
        reference="Jet (TMLR 2025)",
        description="affine coupling over codes that are maps: checkerboard and channels, transformers over the places",
    )
    register(
        "linear",
        _linear,
        licence="MIT",
        description="no coupling: a linear Gaussian t in closed form; linear+affine puts couplings on the rest",
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
