"""FaceNet and the alignment of faces for posthoc_inn; only the factories import torch and facenet-pytorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from posthoc_inn.config import ImageSpec
from posthoc_inn.plugins.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    import click
    from torch import nn

NAME = "facenet"
SPEC = ImageSpec(size=(160, 160), mean=(127.5 / 255,) * 3, std=(128 / 255,) * 3)
"""Aligned faces of 160 px, and of bytes (x - 127.5) / 128: what facenet-pytorch's own post-processing gives."""
LAYERS = {
    "conv2d_2b": "MSC tab. S12: 3 x Conv, BN, ReLU",
    "maxpool_3a": "MSC tab. S12: MaxPool",
    "conv2d_4a": "MSC tab. S12, investigated: 3 x Conv, BN, ReLU, the second of these",
    "conv2d_4b": "MSC tab. S12: 3 x Conv, BN, ReLU, the last of these",
    "repeat_1": "MSC tab. S12: 5 x Block35",
    "mixed_6a": "MSC tab. S12, investigated: Mixed down (the first)",
    "repeat_2": "MSC tab. S12: 10 x Block17",
    "mixed_7a": "MSC tab. S12: Mixed down (the second)",
    "block8": "MSC tab. S12: 5 x Block8, and the sixth without ReLU",
    "avgpool_1a": "MSC tab. S12, investigated: AdaAvgPool",
    "last_bn": "MSC tab. S12: Dropout, Linear, BN",
    "output": "MSC tab. S12, investigated: identity embedding, of length 1",
}
"""Layer -> what the table of Making Sense of CNNs calls it; `posthoc-inn layers --backbone facenet` shows both."""


def _build(*, weights: str | None, num_classes: int | None) -> nn.Module:
    from posthoc_inn_facenet.backbone import build_facenet

    return build_facenet(weights=weights, num_classes=num_classes)


@hookimpl
def register_backbones(register: Register[nn.Module]) -> None:
    """Register Inception-ResNet-v1, whose output is an embedding of 512 numbers."""
    register(
        NAME,
        _build,
        spec=SPEC,
        layers=LAYERS,
        licence="MIT (code); published weights: see VGGFace2 and CASIA-WebFace (research)",
        reference="https://github.com/timesler/facenet-pytorch",
        description="FaceNet: Inception-ResNet-v1, faces to an identity embedding of 512 numbers",
    )


@hookimpl
def register_commands(cli: click.Group) -> None:
    """Add `posthoc-inn align`."""
    from posthoc_inn_facenet.command import command

    cli.add_command(command)
