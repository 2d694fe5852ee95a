"""What a plugin can implement: one typed specification a plugin hook, saying when it is called.

`plugins/README.md` in the project's repository is the tutorial; a test keeps it in step with the signatures
here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pluggy

if TYPE_CHECKING:
    import click
    from torch import Tensor, nn
    from torch.utils.data import Dataset

    from posthoc_inn.protocols import ConceptSource

PROJECT = "posthoc_inn"
"""Name of the markers' project, and of the entry point group that plugins are found in."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

T_contra = TypeVar("T_contra", contravariant=True)

COMMON_KEYS = ("licence", "reference", "description")
"""Metadata every kind takes: licence of code, weights or data; where it is published; one line for lists."""

METADATA_KEYS: Mapping[str, tuple[str, ...]] = {
    "backbone": (*COMMON_KEYS, "spec", "layers"),
    "autoencoder": (*COMMON_KEYS, "sizes", "channels", "latent"),
    "flow": COMMON_KEYS,
    "concept source": (*COMMON_KEYS, "options"),
    "dataset": (
        *COMMON_KEYS,
        "image_size",
        "channels",
        "classes",
        "needs_dir",
        "fixed_split",
        "attribute_names",
        "options",
    ),
    "image metric": (*COMMON_KEYS, "higher_is_better", "min_size", "weights"),
    "analysis": (*COMMON_KEYS, "needs", "options"),
}
"""Kind -> the metadata its `register` takes; any other key is refused, so that a misspelt one is noticed."""


class Register(Protocol[T_contra]):
    """The callback a ``register_*`` hook is handed: names a factory, and says what is known beforehand."""

    def __call__(self, name: str, factory: Callable[..., T_contra], **metadata: Any) -> None:
        """Register `factory` under `name`: text without white space or colon, unused by anybody else."""

    def open_ended(
        self,
        prefix: str,
        *,
        names: Callable[[], Iterable[str]],
        factory: Callable[[str], Callable[..., T_contra] | None],
        metadata: Callable[[str], Mapping[str, Any]] | None = None,
    ) -> None:
        """Register everything that is asked for as ``prefix:NAME``, without listing it beforehand.

        Args:
            prefix: What users type before the colon; by custom the last part of the distribution's name.
            names: Lists every NAME. Called only to suggest the nearest name and to list on request, so that
                it may import what is heavy.
            factory: Takes NAME and returns its factory, or None where there is no such name. May raise a
                `PosthocInnError` to say why a name that exists is refused.
            metadata: Takes NAME and returns what `register` takes as keywords.
        """


@dataclass(frozen=True)
class FitEvent:
    """What happened in a fit: what each fit hook gets.

    Attributes:
        stage: "autoencoder", "t", "e", or "fit" for the whole.
        out: Directory of the run, or None when nothing is written.
        info: Plain JSON-able facts: steps, seconds, losses, or the error's text.

    >>> FitEvent("t", "runs/a", {"seconds": 12.5}).stage
    't'
    """

    stage: str
    out: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)


@hookspec
def register_backbones(register: Register[nn.Module]) -> None:
    """Register networks to be explained. Called once, when plugins are loaded; factories import torch.

    Factory: ``factory(*, weights: str | None, num_classes: int | None) -> nn.Module``. `weights` is None
    (random, the same at every call), a name the plugin understands (which may download: the user asked by
    naming it) or a local file, to be read by `posthoc_inn.weights.reading.load_weights`. `num_classes` is None for
    whatever the weights have.

    Metadata: `spec`, an `ImageSpec`, a callable from `weights` to one (it may import what is heavy), or None
    for a network that takes canonical images as they are; `layers`, names worth looking at, from input to
    output, or a mapping from each to what it is in words, which `posthoc-inn layers` shows.
    """


@hookspec
def register_autoencoders(register: Register[nn.Module]) -> None:
    """Register encoder and decoder pairs. Called once, when plugins are loaded.

    Factory: ``factory(config: AutoencoderConfig) -> nn.Module`` with `config`, `latent_dim`, ``encode(images)
    -> (mean, std)``, each (B, D), and ``decode(z_bar) -> images``, images (B, C, H, W) in [0, 1]. One with
    ``loss(images, noise)`` is trained by a fit, which needs what `posthoc_inn.autoencoders.TrainableAutoencoder` has;
    any other is taken as it is.

    A latent that keeps places is handed around flattened, in the order (C, h, w); `latent_shape` tells its shape.

    Metadata: `sizes`, image sizes in pixels it can be built for; `channels`, channels it can be built for; `latent`,
    "map" where it is built from configurations of a map (`AutoencoderConfig.of_map`), "vector" unless given.
    """


@hookspec
def register_flows(register: Register[nn.Module]) -> None:
    """Register couplings, chosen by ``FlowConfig.kind``. Called once, when plugins are loaded.

    Factory: ``factory(config: FlowConfig, index: int, *, generator: torch.Generator) -> nn.Module``, which
    transforms the first half of x where `index` is even and else the second; initial weights are drawn from
    `generator`. The module has ``forward(x, context) -> (y, log_det)`` and ``inverse(y, context) -> x`` with
    x, y (..., D), context (..., C) or None, `log_det` (...) in nats; `posthoc_inn.flows.Coupling` is a base
    class with all of it but the transform itself.
    """


@hookspec
def register_concept_sources(register: Register[ConceptSource]) -> None:
    """Register sources of pairs that share, or differ in, a concept. Called once, when plugins are loaded.

    Factory: ``factory(data: Dataset, *, seed: int, **options) -> ConceptSource`` over the data set's own
    indices. A source has ``names`` and ``pairs(n, seed=) -> (a, b, shared)``: indices (n,) of the two images of
    each pair, and which factors they share, boolean (n, K + 1), the residual's column first. It may have ``extra``, a
    data set of images of its own, numbered on from the data set's last; and ``subset(index)``, the same concepts
    over the images `index` (M,), numbered from 0.

    Metadata: `options`, name -> one line of help for each keyword the factory takes besides.
    """


@hookspec
def register_datasets(register: Register[Dataset[Any]]) -> None:
    """Register data sets. Called once, when plugins are loaded.

    Factory: ``factory(root: str | None, *, train: bool, seed: int, **options) -> Dataset`` of pairs (image
    (C, H, W), float in [0, 1]; label: an integer, or a tensor (K,) of binary attributes). Where more is known
    of an image (its factors), the data set has ``attributes(index) -> dict[str, Tensor]`` (and, where it can,
    ``attribute_table()``, the same for all images: name -> (N,) or (N, d)) with the keys
    `attribute_names`. Reads what is there; downloads only for the option ``download=True``. Where files are
    missing it raises `DataError` saying which are expected where, and how to get them.

    Metadata: `image_size` in pixels, or None where it varies; `channels`; `classes`, names in the order of
    the labels; `needs_dir`, whether `root` must be given; `fixed_split`, whether train and held-out are the
    publisher's (otherwise they are drawn by seed); `attribute_names`, keys of ``attributes(index)``;
    `options`, name -> one line of help.
    """


@hookspec
def register_image_metrics(register: Register[Callable[[Tensor, Tensor], Tensor]]) -> None:
    """Register measures of how far two images are apart. Called once, when plugins are loaded.

    Factory: ``factory() -> metric`` with ``metric(a, b) -> (B,)``, finite, for images a, b (B, C, H, W) in [0, 1].
    A fit measures reconstructions by those that its user names. One that is 0 for the same picture, never below, and
    passes gradients on to b can also train autoencoders (`AutoencoderConfig.perceptual`); their pictures may leave
    [0, 1] a little. Its networks, if it has any, are in a module, which it then is.

    Metadata: `higher_is_better`, False unless given; `min_size`, the smallest height and width in pixels; `weights`,
    one line of what `AutoencoderConfig.perceptual_weights` may be for it: the factory then takes
    ``weights: str | None`` as a keyword, None by default, and raises `DataError` where weights are missing.
    """


@hookspec
def register_analyses(register: Register[Any]) -> None:
    """Register analyses of a fitted interpreter. Called once, when plugins are loaded.

    Factory: ``factory() -> analysis`` with ``analysis(interpreter, data, *, seed: int, **options)`` returning
    an object whose ``to_dict()`` is plain data. It may have ``figure()``, a matplotlib figure, and ``caption``, what to
    conclude and what not, for reports.

    Metadata: `needs`, what must have been fitted ("t", "e"), and "train" where it trains on images, which it gets as
    the option `train`; `options`, name -> one line of help.
    """


@hookspec
def register_commands(cli: click.Group) -> None:
    """Add commands to ``posthoc-inn``. Called once, when plugins are loaded; for ``--help`` too.

    `cli` is a group made for this plugin; what is added to it appears beside the built-in commands. A name
    that a built-in command has is refused. Import what is heavy inside the command's function.
    """


@hookspec
def fit_started(event: FitEvent) -> None:
    """Called in the fitting process when training starts, after everything was prepared; ``event.stage`` is "fit".

    The events of a fit come in this order: `fit_started`, `fit_stage_finished` for each stage that is trained, then
    `fit_finished` or `fit_failed`. A fit that cannot be prepared (wrong arguments, unreadable images) has no events.
    What a fit hook raises is reported as a warning that names its distribution; the fit goes on.
    """


@hookspec
def fit_stage_finished(event: FitEvent) -> None:
    """Called after each stage has been trained and, where there is an output directory, written."""


@hookspec
def fit_finished(event: FitEvent) -> None:
    """Called once at the end of a fit that went well; ``event.info["seconds"]`` is how long its stages took."""


@hookspec
def fit_failed(event: FitEvent) -> None:
    """Called when a fit ends by an error or by Ctrl-C; ``event.info["error"]`` is the text."""
