"""Every timm classifier for posthoc_inn, as ``timm:NAME``; only the factories import torch and timm."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from posthoc_inn.config import ImageSpec
from posthoc_inn.plugins.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    from torch import nn


def _names() -> list[str]:
    from posthoc_inn_timm.backbones import names

    return names()


def _factory(name: str) -> Callable[..., nn.Module] | None:
    from posthoc_inn_timm.backbones import build_model, is_known

    if not is_known(name):
        return None

    def build(*, weights: str | None, num_classes: int | None) -> nn.Module:
        return build_model(name, weights=weights, num_classes=num_classes)

    return build


def _metadata(name: str) -> dict[str, Any]:
    from posthoc_inn_timm.backbones import image_spec, licence

    def spec(weights: str | None) -> ImageSpec:
        return image_spec(name)

    return {"spec": spec, "licence": licence(name), "reference": f"timm.create_model({name!r})"}


@hookimpl
def register_backbones(register: Register[nn.Module]) -> None:
    """Register every timm model as ``timm:NAME``."""
    register.open_ended("timm", names=_names, factory=_factory, metadata=_metadata)
