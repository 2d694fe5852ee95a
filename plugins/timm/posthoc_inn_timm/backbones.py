"""timm's networks: built with random weights, timm's published ones, or those of a local file."""

from __future__ import annotations

from typing import Any

import timm
from timm.data.config import resolve_data_config
from torch import nn

from posthoc_inn.config import ImageSpec
from posthoc_inn.errors import DataError, UnknownNameError
from posthoc_inn.weights import infer_num_classes, is_weights_file, load_into, load_state, seeded_init

PRETRAINED = "pretrained"


def names() -> list[str]:
    """Return the name of every architecture; a published variant is asked for as ``ARCHITECTURE.TAG``."""
    found: list[str] = timm.list_models()
    return found


def is_known(name: str) -> bool:
    """Say whether timm itself has `name`; addresses of hubs and directories ("hf-hub:...") are not taken."""
    if ":" in name or "/" in name or not timm.is_model(name):
        return False
    return _published(name) is not None or "." not in name


def licence(name: str) -> str:
    """Return the licence of the code, and of the published weights where timm states one."""
    stated = getattr(_published(name), "license", None)
    return f"Apache-2.0 (code); published weights: {stated or 'not stated'}"


def image_spec(name: str) -> ImageSpec:
    """Return timm's own data configuration of `name`."""
    published = _published(name)
    data: dict[str, Any] = resolve_data_config(  # type: ignore[no-untyped-call, unused-ignore]
        pretrained_cfg=published.to_dict() if published else {}
    )
    channels, height, width = (int(n) for n in data["input_size"])
    interpolation = data["interpolation"]
    return ImageSpec(
        size=(height, width),
        mean=tuple(float(m) for m in data["mean"]),
        std=tuple(float(s) for s in data["std"]),
        interpolation=interpolation if interpolation in ("bilinear", "bicubic", "nearest") else "bilinear",
        channels=channels,
        crop=min(1.0, float(data["crop_pct"])),
    )


def build_model(name: str, *, weights: str | None, num_classes: int | None) -> nn.Module:
    """Build a network in eval mode; the global generator is not used.

    Args:
        name: An architecture, or ``ARCHITECTURE.TAG``.
        weights: None for random ones, the same at every call; "pretrained" for timm's published ones, which
            downloads them where the hub's cache lacks them; or a local file.
        num_classes: Outputs; None for what the weights have, or timm's default for the network.

    Raises:
        UnknownNameError: `weights` is neither a file nor "pretrained".
        DataError: The weights cannot be read, downloaded or loaded.
    """
    if weights == PRETRAINED:
        return _pretrained(name, num_classes)
    if weights is None:
        return _build(name, num_classes)
    if not is_weights_file(weights):
        raise UnknownNameError(
            f"timm:{name} takes weights 'pretrained' or a local file, got {weights!r}. A published variant "
            f"is part of the network's name: timm:{name.partition('.')[0]}.TAG."
        )
    state = load_state(weights)
    if num_classes is None:
        num_classes = infer_num_classes(lambda n: timm.create_model(name, num_classes=n), state)
    model = _build(name, num_classes)
    load_into(model, state, source=weights)
    return model


def _build(name: str, num_classes: int | None) -> nn.Module:
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    with seeded_init():
        model: nn.Module = timm.create_model(name, pretrained=False, **options)
    return model.eval()


def _pretrained(name: str, num_classes: int | None) -> nn.Module:
    published = _published(name)
    if published is None or not published.has_weights:
        raise DataError(
            f"timm publishes no weights for {name}. Pass a local file, or leave weights out for random ones."
        )
    if num_classes not in (None, published.num_classes):
        raise DataError(
            f"timm's weights of {name} are for {published.num_classes} classes, got "
            f"num_classes={num_classes}. Leave it out, or pass your own weights file."
        )
    try:
        with seeded_init():
            model: nn.Module = timm.create_model(name, pretrained=True)
    except Exception as error:
        # The hub's client raises dozens of kinds; whatever it is, there are no weights.
        raise DataError(
            f"timm's weights of {name} could not be had ({type(error).__name__}: {_one_line(error)}); "
            "nothing was downloaded. Where there is no network, pass a local file of them, or leave weights "
            "out for random ones."
        ) from error
    return model.eval()


def _published(name: str) -> Any:
    try:
        return timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:
        return None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
