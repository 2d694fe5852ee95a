"""Says what an autoencoder lacks to serve as one: every problem at once, each with what to do."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_inn.autoencoders import latent_shape_of
from posthoc_inn.config import AutoencoderConfig
from posthoc_inn.errors import ConfigError, shown
from posthoc_inn.testing.checks import (
    FAILED,
    ROWS,
    Checks,
    Conformance,
    are_alike,
    are_same,
    check_gradient,
    check_rows,
    device_of,
    normal,
)

OVER = 1e-3
"""What pixels may lie outside of [0, 1]: rounding does."""


def check_autoencoder(
    autoencoder: object, images: Tensor | None = None, *, gradients: bool | None = None, seed: int = 0
) -> Conformance:
    """Try whether `autoencoder` does what `posthoc_inn.autoencoders.Autoencoder` promises; it is left as it is.

    Args:
        autoencoder: Trained, or one that a fit is to train.
        images: Of the kind that it is for, (B, C, H, W) in [0, 1], two or more: then reconstructions are judged too,
            which those of noise are not.
        gradients: Whether decode must pass gradients on; by default unless its `is_differentiable` is False.
        seed: Of the images and latents that are made up.

    >>> from posthoc_inn.autoencoders import ConvAutoencoder
    >>> print(check_autoencoder(ConvAutoencoder(AutoencoderConfig(size=28, latent_dim=8, width=8))))
    ConvAutoencoder can serve.
    """
    checks = Checks(type(autoencoder).__name__)
    given: Any = autoencoder
    checks.need(isinstance(given, nn.Module), "it must be a torch.nn.Module")
    lacking = [name for name in ("encode", "decode", "config", "latent_dim") if not hasattr(given, name)]
    checks.need(
        not lacking, f"it has no {', '.join(lacking)}: wrap your own in GivenAutoencoder(encoder, decoder, ...)"
    )
    config = getattr(given, "config", None)
    is_config = isinstance(config, AutoencoderConfig)
    checks.need(is_config or "config" in lacking, f"config is a {type(config).__name__}, not an AutoencoderConfig")
    if checks.problems or not isinstance(config, AutoencoderConfig):
        return checks.done()
    checks.need(
        given.latent_dim == config.latent_dim,
        f"latent_dim is {given.latent_dim}, that of config {config.latent_dim}",
    )
    shape = latent_shape_of(given)
    checks.need(
        math.prod(shape) == given.latent_dim,
        f"latent_shape is {shape}, which has not the {given.latent_dim} values of a flattened latent",
    )
    if images is None:
        pictures = _pictures(config, seed)
    else:
        pictures = images.detach().float()
        wanted = (config.channels, config.size, config.size)
        if pictures.ndim != 4 or tuple(pictures.shape[1:]) != wanted or len(pictures) < 2:
            raise ConfigError(f"check_autoencoder takes two or more images (B, {wanted}), got {tuple(pictures.shape)}.")
    device = device_of(given)
    pictures = pictures.to(device)
    latents = normal(ROWS, config.latent_dim, seed).to(device)
    with checks.left_as_it_is(given):
        if getattr(given, "has_encoder", True):
            means = _check_encode(checks, given, pictures, config.latent_dim)
            if means is not None:
                latents = torch.cat([latents, means[:ROWS]])
        decoded = _check_decode(checks, given, latents, (config.channels, config.size, config.size))
        if decoded is not None:
            _check_pixels(checks, decoded)
        if decoded is not None and (getattr(given, "is_differentiable", True) if gradients is None else gradients):
            check_gradient(checks, given.decode, latents)
        if images is not None and decoded is not None and getattr(given, "has_encoder", True):
            _check_reconstructions(checks, given, pictures)
        if hasattr(given, "loss"):
            _check_loss(checks, given, pictures, config.latent_dim, seed)
    return checks.done()


def _check_encode(checks: Checks, given: Any, images: Tensor, width: int) -> Tensor | None:
    """Check encode; return the means, where there are any to go on with."""
    kept = images.clone()
    with torch.no_grad():
        out = checks.attempt(f"encode of images {tuple(images.shape)}", lambda: given.encode(images))
        if out is FAILED:
            return None
        is_pair = isinstance(out, (tuple, list)) and len(out) == 2 and all(isinstance(o, Tensor) for o in out)
        if not checks.need(is_pair, f"encode gives a {type(out).__name__}: needed are two tensors, mean and deviation"):
            return None
        checks.need(torch.equal(images, kept), "encode writes into the images it is given")
        mean: Tensor = out[0]
        std: Tensor = out[1]
        is_good = True
        for name, part in (("mean", mean), ("standard deviation", std)):
            is_good &= _is_plain(checks, f"encode's {name}", part, (len(images), width), images)
        if not is_good:
            return None
        low = float(std.min())
        checks.need(
            low > 0,
            f"encode's standard deviation goes down to {low:.3g}: it must be positive, as t needs a density; a log "
            "variance has to be turned into one",
        )
        checks.need(not are_same(mean[0], mean[1]), "encode gives the same mean for different images")
        again = checks.attempt("encode, a second time,", lambda: given.encode(images)[0])
        checks.need(
            again is FAILED or are_same(mean, again),
            "encode gives another mean for the same images the second time: noise is added by the framework",
        )
        alone = checks.attempt("encode of a single image", lambda: given.encode(images[:1])[0])
        checks.need(
            alone is FAILED or again is FAILED or not are_same(mean, again) or are_alike(mean[:1], alone),
            "encode gives another mean for an image alone than among others: its rows must not depend on each other",
        )
        return mean


def _check_decode(checks: Checks, given: Any, latents: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """Check decode; return the images, where there are any."""
    kept = latents.clone()
    with torch.no_grad():
        out = checks.attempt(f"decode of latents {tuple(latents.shape)}", lambda: given.decode(latents))
        if out is FAILED:
            return None
        if not checks.need(isinstance(out, Tensor), f"decode gives a {type(out).__name__}: it must give a tensor"):
            return None
        checks.need(torch.equal(latents, kept), "decode writes into the latents it is given")
        if not _is_plain(checks, "decode's images", out, (len(latents), *shape), latents):
            return None
        found: Tensor = out
        check_rows(checks, "decode", given.decode, latents, found)
        return found


def _check_pixels(checks: Checks, images: Tensor) -> None:
    low, high = float(images.min()), float(images.max())
    checks.need(
        low >= -OVER and high <= 1 + OVER,
        f"decode's images lie in [{low:.3g}, {high:.3g}]: they must lie in [0, 1] (GivenAutoencoder has image_range=)",
    )


def _check_reconstructions(checks: Checks, given: Any, images: Tensor) -> None:
    """Check that most reconstructions are nearer to their own image than to any other."""
    with torch.no_grad():
        made = checks.attempt("decode of encode's means", lambda: given.decode(given.encode(images)[0]))
    if not isinstance(made, Tensor) or made.shape != images.shape:
        return
    distances = torch.cdist(made.flatten(1).double(), images.flatten(1).double())
    right = float((distances.argmin(1) == torch.arange(len(images), device=images.device)).double().mean())
    checks.need(
        right > 0.5,
        f"only {100 * right:.0f} % of the reconstructions decode(encode(x)) are nearest to their own image: is it "
        "trained, and are range and normalisation those it was trained with?",
    )


def _check_loss(checks: Checks, given: Any, images: Tensor, width: int, seed: int) -> None:
    """Check what a fit needs of an autoencoder that it trains."""
    noise = normal(len(images), width, seed + 1).to(images.device)
    lacking = not hasattr(given, "loss_figures")
    checks.need(not lacking, "it has loss, but no loss_figures: see posthoc_inn.autoencoders.TrainableAutoencoder")
    if lacking:
        return
    with torch.enable_grad():
        figures = checks.attempt("loss_figures(images, noise)", lambda: given.loss_figures(images, noise))
    if figures is FAILED:
        return
    is_mapping = isinstance(figures, dict) and {"loss", "error"} <= set(figures)
    if not checks.need(is_mapping, 'loss_figures must give a dict with at least "loss" and "error"'):
        return
    for name in ("loss", "error"):
        value = figures[name]
        is_scalar = isinstance(value, Tensor) and value.ndim == 0 and bool(torch.isfinite(value))
        checks.need(is_scalar, f'loss_figures\' "{name}" must be a finite scalar tensor, got {shown(value, 60)}')
    loss = figures["loss"]
    checks.need(
        isinstance(loss, Tensor) and loss.requires_grad, "the loss has no gradient: nothing can be trained by it"
    )


def _is_plain(checks: Checks, name: str, value: Tensor, shape: tuple[int, ...], like: Tensor) -> bool:
    """Check shape, type, device and that all is finite; say whether one can go on with it."""
    got = tuple(value.shape)
    is_good = checks.need(got == shape, f"{name} must have shape {shape}, got {got}")
    checks.need(value.dtype == torch.float32, f"{name} must be float32, got {value.dtype}")
    checks.need(value.device == like.device, f"{name} must be on the inputs' device, {like.device}, not {value.device}")
    return checks.need(bool(torch.isfinite(value).all()), f"{name} must be finite") and is_good


def _pictures(config: AutoencoderConfig, seed: int) -> Tensor:
    """Return smooth made-up images (ROWS, C, H, W) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(ROWS, config.channels, 4, 4, generator=generator)
    return nn.functional.interpolate(coarse, size=config.size, mode="bilinear", align_corners=False).clamp(0, 1)
