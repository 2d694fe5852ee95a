"""The options of `fit`, and what they and the defaults come to; nothing is built here."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from posthoc_inn.cli.autoencoders import autoencoder_changes
from posthoc_inn.cli.data import EMBEDDED, is_folder
from posthoc_inn.cli.models import (
    DEFAULT_LAYERS,
    FALLBACK_BACKBONE,
    TRAIN,
    default_backbone,
    layers_worth_looking_at,
    means_import,
)
from posthoc_inn.cli.options import chosen_preset
from posthoc_inn.config import FitConfig, Precision
from posthoc_inn.errors import PosthocInnError, Problems
from posthoc_inn.plugins import PluginManager

if TYPE_CHECKING:
    from posthoc_inn.features import PredictionKind

EMBEDDED_DRAWS = 40
"""Colourings of each embedded digit, unless --draws says otherwise."""
EMBEDDED_PRESET = "quick"
"""Sizes and steps of the embedded example, unless --preset says otherwise."""


@dataclass(frozen=True)
class FitOptions:
    """The command's options, as given; see `posthoc-inn fit --help`."""

    backbone: str | None = None
    model: str | None = None
    weights: str | None = None
    num_classes: int | None = None
    input_size: int | list[int] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    layer: str | None = None
    prediction_kind: PredictionKind = "auto"
    data: str | None = None
    data_dir: str | None = None
    data_options: list[Any] = field(default_factory=list)
    held_out: str | None = None
    concepts: str | None = None
    concept_options: list[Any] = field(default_factory=list)
    draws: int | None = None
    autoencoder: str | None = None
    autoencoder_options: list[Any] = field(default_factory=list)
    preset: str | None = None
    image_size: int | None = None
    epochs: float | None = None
    steps: int | None = None
    autoencoder_steps: int | None = None
    concept_steps: int | None = None
    classifier_steps: int | None = None
    code_noise: float = 0.0
    faithful: float | None = None
    refits: int = 0
    image_metrics: list[str] = field(default_factory=list)
    seed: int = 0
    precision: Precision = "auto"
    out: Path = Path("runs/color-digits")
    device: str = "auto"
    threads: int | None = None
    resume: bool = False
    as_json: bool = False
    quiet: bool = False
    resolved_precision: Literal["32", "bf16"] | None = None

    def of_the_run(self) -> dict[str, Any]:
        """Return the options that a run is made of, ready for JSON."""
        outside = ("out", "device", "threads", "resume", "as_json", "quiet", "resolved_precision")
        return {name: value for name, value in vars(self).items() if name not in outside}


@dataclass(frozen=True)
class Choice:
    """What the options and the defaults come to.

    Attributes:
        backbone: Registered network, or None with --model.
        weights: "train", "none", a name, a file, or None with --model.
        layer: The layer.
        data: Registered data set or folder.
        is_folder: Which of the two.
        draws: Draws asked for, or by default.
        config: Sizes and steps.
        notes: What was chosen by default, and why.
    """

    backbone: str | None
    weights: str | None
    layer: str
    data: str
    is_folder: bool
    draws: int | None
    config: FitConfig
    notes: tuple[str, ...]


def choose(options: FitOptions, manager: PluginManager) -> Choice:
    """Resolve names and defaults, without building anything.

    Raises:
        ConfigError: All problems at once.
    """
    problems = Problems("posthoc-inn fit")
    notes: list[str] = []
    is_default_model = options.backbone is None and options.model is None
    backbone = default_backbone(manager) if is_default_model else options.backbone
    data = options.data or EMBEDDED
    if is_default_model and backbone == FALLBACK_BACKBONE:
        notes.append(
            "posthoc-inn-torchvision is not installed, so the built-in small_cnn stands in for SqueezeNet 1.1."
        )

    def attempt(action: Callable[[], Any]) -> Any:
        try:
            return action()
        except PosthocInnError as error:
            problems.check(False, " ".join(str(error).split()).rstrip("."))
            return None

    if backbone is not None:
        attempt(lambda: manager.backbones.get(backbone))
    reads_folder = bool(attempt(lambda: is_folder(manager, data)))
    problems.check(
        options.held_out is None or reads_folder,
        f"--held-out is for folders; the data set {data} has its own held-out part",
    )
    weights = options.weights
    if weights is None and options.model is None:
        if is_default_model or data == EMBEDDED:
            weights = TRAIN
        else:
            problems.check(
                False,
                f"--backbone {backbone} needs --weights: a file, the name of published weights, train (train it on the "
                "labelled data first) or none (random weights, on purpose)",
            )
    layer = options.layer or DEFAULT_LAYERS.get(backbone or "")
    if layer is None and backbone is not None and backbone in manager.backbones:
        problems.check(False, f"--layer is missing. {layers_worth_looking_at(manager, backbone)}")
    if options.autoencoder is not None and not Path(options.autoencoder).is_dir():
        name = options.autoencoder
        if "/" in name and name.partition(":")[0] not in manager.autoencoders.prefixes():
            problems.check(False, f"--autoencoder {name}: there is no such bundle")
        elif not means_import(manager, name):
            attempt(lambda: manager.autoencoders.get(name))
    attempt(lambda: autoencoder_changes(options.autoencoder, options.autoencoder_options, manager))
    problems.raise_if_any()
    draws = options.draws
    if draws is None and data == EMBEDDED:
        draws = EMBEDDED_DRAWS
    usual = EMBEDDED_PRESET if data == EMBEDDED else "default"
    config = chosen_preset(options.preset or usual, options.code_noise, options.faithful)
    return Choice(
        backbone,
        weights,
        str(layer),
        data,
        reads_folder,
        draws,
        config,
        tuple(notes),
    )


def title_of(name: str | None) -> str:
    """Return a network's name as it is written in sentences."""
    return {"squeezenet1_1": "SqueezeNet 1.1", None: "the model"}.get(name) or str(name)


def command_line(options: FitOptions) -> str:
    """Return the command that makes the same run.

    >>> command_line(FitOptions(steps=5, mean=[0.5, 0.5, 0.5], out=Path("runs/a")))
    'posthoc-inn fit --mean 0.5,0.5,0.5 --steps 5 --out runs/a'
    """
    words = ["posthoc-inn", "fit"]
    defaults = FitOptions()
    for name, value in options.of_the_run().items():
        if value == getattr(defaults, name):
            continue
        flag = f"--{name.replace('_', '-')}"
        if name == "image_metrics":
            for metric in value:
                words += ["--image-metric", metric]
        elif name in ("data_options", "concept_options", "autoencoder_options"):
            for key, item in value:
                words += [flag.rstrip("s"), f"{key}={item}"]
        else:
            words += [flag, ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    return shlex.join([*words, "--out", str(options.out)])
