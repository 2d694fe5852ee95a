"""torchvision's classifiers with random weights, torchvision's published ones, or those of a local file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model, get_model_builder, get_model_weights, list_models

from posthoc_inn.config import ImageSpec
from posthoc_inn.errors import DataError, UnknownNameError, suggest
from posthoc_inn.weights import infer_num_classes, is_weights_file, load_into, load_state, seeded_init

IMAGENET = ImageSpec(size=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop=224 / 256)
_WITH_AUXILIARY = ("googlenet", "inception_v3")
_OTHER_TASKS = ("detection", "segmentation", "video", "optical_flow", "quantization")
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\.\w+)$")


def classifier_names() -> list[str]:
    """Return the name of every image classifier torchvision has, quantised copies aside."""
    names: list[str] = list_models(module=torchvision.models)
    return names


def is_classifier(name: str) -> bool:
    """Say whether `name` is one of them.

    Raises:
        UnknownNameError: It is a model of torchvision's for another task.
    """
    if name in classifier_names():
        return True
    if name in list_models():
        module = get_model_builder(name).__module__
        task = next((t.replace("_", " ") for t in _OTHER_TASKS if f".{t}." in f"{module}."), "other")
        raise UnknownNameError(
            f"torchvision's {name!r} is a {task} model; posthoc_inn's torchvision plugin takes image "
            "classifiers only. Pass your own model (--model package.module:factory, or the Python API) to "
            "explain it."
        )
    return False


def image_spec(name: str, weights: str | None) -> ImageSpec:
    """Return how `name` wants its images.

    Args:
        name: A classifier.
        weights: Published weights carry their own transforms; for random ones and local files the network's
            default weights' are taken.
    """
    published = published_weights(name, weights)
    if published is None:
        published = getattr(get_model_weights(name), "DEFAULT", None)
        if published is None:
            return IMAGENET
    preset = published.transforms()
    height = int(preset.crop_size[0])
    interpolation = preset.interpolation.value
    return ImageSpec(
        size=(height, height),
        mean=tuple(float(m) for m in preset.mean),
        std=tuple(float(s) for s in preset.std),
        interpolation=interpolation if interpolation in ("bilinear", "bicubic", "nearest") else "bilinear",
        crop=min(1.0, height / int(preset.resize_size[0])),
    )


def published_weights(name: str, weights: str | None) -> WeightsEnum | None:
    """Return torchvision's entry for `weights`; None for random ones and for files it did not publish.

    Raises:
        UnknownNameError: `weights` is no file, and not one of the entries.
    """
    if weights is None:
        return None
    entries = get_model_weights(name)
    if is_weights_file(weights):
        file = Path(weights).name
        return next((e for e in entries if e.url.rpartition("/")[2] == file), None)
    member = weights.rpartition(".")[2] if weights.startswith(f"{entries.__name__}.") else weights
    by_name = {m.upper(): e for m, e in entries.__members__.items()}
    if member.upper() not in by_name:
        raise UnknownNameError(
            f"torchvision publishes no weights {weights!r} for {name}. "
            f"{suggest(member, entries.__members__)} A local file is also accepted."
        )
    return by_name[member.upper()]


def build_classifier(name: str, *, weights: str | None, num_classes: int | None) -> nn.Module:
    """Build a classifier in eval mode; the global generator is not used.

    Args:
        name: One of `classifier_names`.
        weights: None for random ones, the same at every call; a name of torchvision's ("DEFAULT",
            "IMAGENET1K_V1"), which downloads them where torch's hub directory lacks them; or a local file.
        num_classes: Outputs; None for what the weights have, or torchvision's 1000.

    Raises:
        UnknownNameError: `weights` is neither a file nor published.
        DataError: The weights cannot be read, downloaded or loaded.
    """
    published = published_weights(name, weights)
    options: dict[str, Any] = {}
    state: Mapping[str, Tensor] | None = None
    if weights is not None:
        state = load_state(weights) if is_weights_file(weights) else _download(name, published)
        state = {_OLD_DENSENET.sub(r"\1\2", key): value for key, value in state.items()}
    if name in _WITH_AUXILIARY:
        # Without it torchvision warns that its default will change.
        options["init_weights"] = state is None
        options["aux_logits"] = state is not None and any(k.lower().startswith("aux") for k in state)
        # The published weights come from TensorFlow, and expect its normalisation: the network converts.
        options["transform_input"] = published is not None
    if num_classes is None and state is not None:
        num_classes = infer_num_classes(lambda n: get_model(name, weights=None, num_classes=n, **options), state)
    if num_classes is not None:
        options["num_classes"] = num_classes
    with seeded_init():
        model: nn.Module = get_model(name, weights=None, **options)
    if state is not None:
        load_into(model, state, source=str(weights))
    return model.eval()


def _download(name: str, published: WeightsEnum | None) -> Mapping[str, Tensor]:
    if published is None:
        raise DataError(f"torchvision publishes no weights for {name}.")
    try:
        state: Mapping[str, Tensor] = published.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:
        # URLError, timeouts, a wrong checksum, a full disk: whatever it is, there are no weights.
        raise DataError(
            f"The weights {published} could not be had from {published.url} ({type(error).__name__}: "
            f"{' '.join(str(error).split())}); nothing was downloaded. Where there is no network, pass a "
            "local file of them, or leave weights out for random ones."
        ) from error
    return state
