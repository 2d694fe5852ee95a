"""Asks the model, before anything is trained, all that it will be asked: what fails then fails in the first seconds."""

from __future__ import annotations

import torch
from torch import Tensor

from posthoc_inn.analysis.faithfulness import compare_with_model
from posthoc_inn.errors import DataError
from posthoc_inn.fit.parts import Parts
from posthoc_inn.fit.prediction import doubts

LOOKED_AT = 64
"""Images that z is looked at for."""
APART = 0.01
"""How far z of an image alone may lie from its z among others, as a share of its length: rounding is far below."""


@torch.no_grad()
def rehearse(parts: Parts) -> list[str]:
    """Ask the model about images and decoded pictures, as the stages and the measuring will.

    Returns:
        What a user has to know of the layer's features and of the prediction, a sentence each.

    Raises:
        DataError: z is not finite, or has another shape for decoded pictures than for images.
        ModelError: The model fails on decoded pictures.
    """
    images = parts.data.look(LOOKED_AT)["images"].to(parts.device)
    z, output = parts.extractor.features_and_prediction(parts.adapter.to_model(images))
    z = z.float()
    if not bool(torch.isfinite(z).all()):
        bad = int((~torch.isfinite(z)).flatten(1).any(1).sum())
        raise DataError(
            f"The layer {parts.extractor.layer!r} gives values that are not finite for {bad} of the first {len(z)} "
            "images. Look for an overflow (half precision?) or a division by zero before it, or choose another layer."
        )
    _ask_about_pictures(parts, images[:2], z[:2], output[:2])
    return [*doubts(parts.prediction), *_constant(z), *_depends_on_the_batch(parts, images, z)]


def _ask_about_pictures(parts: Parts, images: Tensor, z: Tensor, output: Tensor) -> None:
    pipeline, autoencoder = parts.pipeline(), parts.autoencoder
    was_training = autoencoder.training
    autoencoder.eval()
    try:
        pictures = pipeline.decode(pipeline.encode(images)[0])
    finally:
        autoencoder.train(was_training)
    for shown in (pictures, pictures[:1]):
        inputs = parts.adapter.pictures_to_model(shown)
        seen = parts.extractor.features(inputs)
        if seen.shape[1:] != z.shape[1:]:
            raise DataError(
                f"z has shape {tuple(z.shape[1:])} for the images, and {tuple(seen.shape[1:])} for decoded pictures, "
                f"which reach the model as {tuple(inputs.shape[1:])}. Give all images one size: that of the fit."
            )
        if parts.extractor.tokens != "mean" and parts.extractor.kind != "none":
            parts.extractor.resume(inputs, seen)
    compare_with_model(pipeline, pictures.cpu(), z.cpu(), parts.extractor.said(output), 1)


def _constant(z: Tensor) -> list[str]:
    spread = (z - z[:1]).abs().flatten(1).amax(0)
    if bool((spread == 0).all()):
        what = "0" if bool((z == 0).all()) else "the same"
        return [
            f"z is {what} for all of the first {len(z)} images: the layer is dead, or does not depend on the image. "
            "Everything counts as thrown away; choose another layer."
        ]
    still = float((spread == 0).double().mean())
    if still > 0.95:
        return [f"{100 * still:.0f} % of the values of z are the same for all of the first {len(z)} images."]
    return []


def _depends_on_the_batch(parts: Parts, images: Tensor, z: Tensor) -> list[str]:
    few = range(min(3, len(images)))
    alone = torch.cat(
        [parts.extractor.features(parts.adapter.to_model(images[k : k + 1])).float() for k in few]
    ).flatten(1)
    among = z[: len(alone)].flatten(1)
    apart = float((alone - among).norm() / among.norm().clamp_min(1e-12))
    if apart <= APART:
        return []
    return [
        f"z of an image depends on the other images of its batch: alone and among {len(images)} it differs by "
        f"{100 * apart:.0f} %. Does the model normalise by the batch (track_running_stats=False, train mode)? Its "
        "figures depend on how images are grouped."
    ]
