"""How differently a frozen network sees two pictures: the distance of LPIPS, for the training of autoencoders."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_inn.errors import ConfigError, LayerNotFoundError, PosthocInnError, Problems, shown, suggest
from posthoc_inn.features.isolation import unwrap
from posthoc_inn.weights import fingerprint

Prepare = Callable[[Tensor], Tensor]
"""Canonical images (B, C, H, W) to what a network gets, differentiably."""

TAPS = 3
"""Layers whose features are compared by default."""
LEAST_SIDE = 4
"""Smallest side of a map that is compared by default."""
_FLOOR = 1e-10


class _ReachedError(Exception):
    """Ends a pass once every layer asked for has answered."""


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a network, without its wrappers, that can pass gradients on.

    Raises:
        ConfigError: It cannot be copied.
    """
    try:
        with torch.inference_mode(False):
            return copy.deepcopy(unwrap(model))
    except Exception as error:  # a stranger's module may hold files, locks or sessions
        raise ConfigError(
            f"The {type(model).__name__} cannot be copied, and pictures are compared by a frozen copy: "
            f"{type(error).__name__}: {shown(error, 200)}. Name a registered backbone as perceptual instead."
        ) from error


class FeatureDistance:
    """The distance of LPIPS over the features of a frozen copy of a network (Zhang et al., CVPR 2018, eq. 1).

    At each layer features are scaled to length 1 over the channels, their squared differences summed over channels and
    averaged over places; then layers are averaged. Without LPIPS' learned weights of channels, so that any network
    serves. 0 for the same picture, at most 4.

    Args:
        model: The network; it is copied, and stays as it is.
        prepare: Makes what it gets from canonical images.
        layers: Dotted names; each must give maps (B, C, H, W) or tokens (B, T, C).
        name: Of the network, for people.

    Attributes:
        net: The copy, in eval mode, without gradients for its weights; no part of any module that is trained or saved.

    Raises:
        LayerNotFoundError: There is no such layer; the message lists the nearest names.
        ConfigError: The network cannot be copied.

    >>> distance = FeatureDistance(nn.Sequential(nn.Conv2d(3, 5, 3)), lambda x: x, ["0"])
    >>> a, b = torch.rand(2, 4, 3, 8, 8)
    >>> float(distance(a, a)), bool(distance(a, b) > 0)
    (0.0, True)
    """

    def __init__(self, model: nn.Module, prepare: Prepare, layers: Sequence[str], *, name: str = "") -> None:
        # Channels last, as the autoencoders are: convolutions are faster so on CPUs.
        self.net = copied(model).eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.prepare, self.layers, self.name = prepare, tuple(layers), name or type(self.net).__name__
        modules = dict(self.net.named_modules())
        for layer in self.layers:
            if not layer or layer not in modules:
                raise LayerNotFoundError(
                    f"{self.name} has no layer {layer!r} to compare pictures by. "
                    f"{suggest(layer, [n for n in modules if n])}"
                )

    def __call__(self, pictures: Tensor, images: Tensor) -> Tensor:
        """Return the mean distance, a scalar, of pictures and their images, both (B, C, H, W) in [0, 1].

        A gradient reaches the pictures; the images are taken as constants.
        """
        with torch.no_grad():
            wanted = self.features(images.detach())
        return torch.stack([_distance(a, b) for a, b in zip(self.features(pictures), wanted, strict=True)]).mean()

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the layers' features, float32 or float64, for canonical images (B, C, H, W).

        Raises:
            ConfigError: A layer is not called, or gives neither maps nor tokens.
        """
        found: dict[str, Tensor] = {}

        def keep(name: str, output: Any) -> None:
            if not isinstance(output, Tensor) or output.ndim not in (3, 4):
                got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ConfigError(
                    f"Layer {name!r} of {self.name} gives {got}, and pictures are compared by maps (B, C, H, W) or "
                    "tokens (B, T, C): name another layer."
                )
            found.setdefault(name, output.clone())  # the next layer may write into it
            if len(found) == len(self.layers):
                raise _ReachedError

        with _listening(self.net, self.layers, keep), suppress(_ReachedError):
            self.net(self.prepare(images))
        missing = sorted(set(self.layers) - set(found))
        if missing:
            raise ConfigError(
                f"{self.name} never calls {', '.join(missing)}: name other layers to compare pictures by."
            )
        return [_places_last(found[layer]) for layer in self.layers]

    def told(self) -> dict[str, Any]:
        """Return what a reader has to know of it: network, layers, and the fingerprint of its weights."""
        return {"features": self.name, "layers": list(self.layers), "fingerprint": fingerprint(self.net)}

    def check(self, images: Tensor) -> None:
        """Check with a few images (B, C, H, W) in [0, 1] that it can be trained by.

        Raises:
            ConfigError: The network fails on pictures, or no finite gradient reaches them.
        """
        check_trains_by(self, images, self.name)


def check_trains_by(distance: Callable[[Tensor, Tensor], Tensor], images: Tensor, name: str) -> None:
    """Check with a few images (B, C, H, W) in [0, 1] that an autoencoder can be trained by a distance.

    Args:
        distance: Pictures and their images to a scalar.
        images: Any.
        name: Of the distance, for people.

    Raises:
        ConfigError: It fails on pictures, or no finite gradient reaches them.
    """
    pictures = (0.5 * images.detach() + 0.25).requires_grad_()
    problems = Problems(f"{name} as an image metric")
    try:
        with torch.enable_grad():
            value = distance(pictures, images)
            if not value.requires_grad:
                problems.check(False, "it passes no gradient on to the pictures")
                problems.raise_if_any()
            (gradient,) = torch.autograd.grad(value, pictures)
    except PosthocInnError:
        raise
    except Exception as error:  # a stranger's network may raise anything
        raise ConfigError(
            f"{name} cannot compare pictures {tuple(images.shape)}: {type(error).__name__}: "
            f"{shown(error, 200)}. Name another network, or other layers."
        ) from error
    problems.check(math.isfinite(float(value.detach())), "its values are not finite")
    problems.check(bool(gradient.isfinite().all()), "its gradient is not finite")
    problems.check(bool(gradient.any()), "it passes no gradient on to the pictures")
    problems.raise_if_any()


def _places_last(features: Tensor) -> Tensor:
    """Return (B, C, places) of maps (B, C, H, W) or tokens (B, T, C), at least in float32."""
    flat = features.flatten(2) if features.ndim == 4 else features.transpose(1, 2)
    return flat if flat.dtype == torch.float64 else flat.float()


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return (unit_channels(a) - unit_channels(b)).square().sum(1).mean()


def unit_channels(features: Tensor) -> Tensor:
    """Return features (B, C, ...) of length 1 over the channels at each place; 0 where all of them are 0."""
    # Inside the root: where all channels are 0, as after a ReLU, its slope would be infinite.
    return features * (features.square().sum(1, keepdim=True) + _FLOOR).rsqrt()


@contextmanager
def _listening(net: nn.Module, layers: Sequence[str], told: Callable[[str, Any], None]) -> Iterator[None]:
    modules = dict(net.named_modules())

    def hook_of(name: str) -> Callable[..., None]:
        return lambda _module, _args, output: told(name, output)

    handles = [modules[name].register_forward_hook(hook_of(name)) for name in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def choose_layers(model: nn.Module, inputs: Tensor, most: int = TAPS) -> list[str]:
    """Choose layers to compare pictures by, early ones: the last at each of the first sizes of the maps, as in LPIPS.

    Of a network whose maps or tokens have one size throughout, some evenly spread over its first half.

    Args:
        model: A frozen copy of the network.
        inputs: What it takes, a few rows.
        most: How many layers at the most.

    Raises:
        ConfigError: No layer gives maps of `LEAST_SIDE` pixels and more, or tokens.

    >>> net = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 4, 1), nn.Flatten())
    >>> choose_layers(net, torch.rand(1, 3, 16, 16))
    ['1', '3']
    """
    seen: dict[str, tuple[int, ...]] = {}

    def look(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and len(output) == len(inputs):
            if output.ndim == 4 and min(output.shape[2:]) >= LEAST_SIDE:
                seen.setdefault(name, tuple(output.shape[2:]))
            elif output.ndim == 3:
                seen.setdefault(name, (output.shape[1],))

    names = [name for name, _ in model.named_modules() if name]
    with _listening(model, names, look):
        model(inputs)
    maps = {name: size for name, size in seen.items() if len(size) == 2} or seen
    if not maps:
        raise ConfigError(
            f"No layer of {type(model).__name__} gives maps of {LEAST_SIDE} pixels and more, or tokens: pictures "
            "cannot be compared by its features. Name another network."
        )
    last = {size: name for name, size in maps.items()}
    if len(last) > 1:
        # A name that an earlier size has again later would not be early.
        return list(last.values())[:most]
    half = list(maps)[: max(1, len(maps) // 2)]
    count = min(most, len(half))
    return [half[round((k + 1) * len(half) / count) - 1] for k in range(count)]
