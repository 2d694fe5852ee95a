"""What a style transfer sees of images: maps of several layers of a frozen network, and their Gram matrices."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_inn.config import ImageSpec
from posthoc_inn.errors import ConfigError, LayerNotFoundError, suggest
from posthoc_inn.features.isolation import unwrap
from posthoc_inn.generators import GENERATORS
from posthoc_inn.images import apply_spec, resize

MIN_SIDE = 8
"""Pixels of the smallest image, and of the smallest map that a layer is chosen for by default."""
MAX_LAYERS = 4
"""Layers whose statistics describe a style by default."""
MIN_SEEN, MAX_SEEN = 64, 128
"""Pixels between which images are enlarged by default, threefold at the most, before the network sees them."""


class StyleFeatures:
    """Maps of several layers from one pass of a frozen copy of a network, which ends at the last of them.

    Args:
        model: Any convolutional network; it is copied, never changed.
        spec: Its mean, standard deviation and channels; its size and crop are not used.
        side: Shorter side, in pixels, at which it sees images; None for three times theirs, within 64 to 128, and for
            theirs where it is more.

    Attributes:
        net: The copy, in eval mode, without gradients for its weights.
        device: Where it lives.

    >>> features = StyleFeatures(nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten()), ImageSpec(), side=16)
    >>> features(torch.rand(2, 3, 8, 8), ["0"])["0"].shape
    torch.Size([2, 5, 14, 14])
    """

    def __init__(self, model: nn.Module, spec: ImageSpec, side: int | None = None) -> None:
        self.spec = spec.replace(size=None, crop=1.0)
        self.side = side
        with torch.inference_mode(False):
            self.net = copy.deepcopy(unwrap(model)).eval().requires_grad_(False)
        self.device = next((t.device for t in (*self.net.parameters(), *self.net.buffers())), torch.device("cpu"))

    def float(self, images: Tensor) -> Tensor:
        """Return images as float32 on the network's device."""
        return images.to(self.device, torch.float32)

    def inputs(self, images: Tensor) -> Tensor:
        """Return what the network is fed for canonical images (B, C, H, W), differentiably."""
        height, width = images.shape[-2:]
        shorter = min(height, width)
        scale = (self.side or max(MIN_SEEN, min(MAX_SEEN, 3 * shorter), shorter)) / shorter
        return apply_spec(resize(self.float(images), (round(height * scale), round(width * scale))), self.spec)

    def __call__(self, images: Tensor, layers: Collection[str]) -> dict[str, Tensor]:
        """Return maps (B, C_l, H_l, W_l) by layer, of its first call, for canonical images (B, C, H, W).

        Raises:
            LayerNotFoundError: There is no such layer; the message lists the nearest names.
            ConfigError: A layer is never called, or gives no map.
        """
        found: dict[str, Tensor] = {}

        def keep(name: str, output: Any) -> None:
            if not isinstance(output, Tensor) or output.ndim != 4:
                shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ConfigError(f"Layer {name!r} gives {shape}, no map (B, C, H, W): choose another for the style.")
            found.setdefault(name, output.clone())  # the next layer may write into it
            if len(found) == len(layers):
                raise _ReachedError

        with self._listening(layers, keep), suppress(_ReachedError):
            self.net(self.inputs(images))
        if missing := sorted(set(layers) - set(found)):
            raise ConfigError(f"{type(self.net).__name__} never calls {', '.join(missing)}: choose other layers.")
        return found

    def layers(self, images: Tensor, candidates: Sequence[str] | None = None) -> list[str]:
        """Choose up to `MAX_LAYERS` layers with maps of `MIN_SIDE` px and more, evenly spread, in the order of call.

        Args:
            images: Canonical images (B, C, H, W) of the size in question.
            candidates: Names to choose from; None for all layers.

        Raises:
            ConfigError: There is none.
            LayerNotFoundError: A candidate is no layer.
        """
        sizes: dict[str, int] = {}

        def look(name: str, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                sizes.setdefault(name, min(output.shape[-2:]))

        everything = [n for n, _ in self.net.named_modules() if n]
        with self._listening(everything if candidates is None else candidates, look), torch.no_grad():
            self.net(self.inputs(images))
        fit = [name for name, size in sizes.items() if size >= MIN_SIDE]
        if not fit:
            raise ConfigError(
                f"No layer of {type(self.net).__name__} gives a map of {MIN_SIDE} px and more for images of "
                f"{tuple(images.shape[-2:])} px: pass a convolutional network, a larger side, or layers=[...]."
            )
        count = min(MAX_LAYERS, len(fit))
        return [fit[round(i * (len(fit) - 1) / max(1, count - 1))] for i in range(count)]

    @contextmanager
    def _listening(self, layers: Collection[str], told: Callable[[str, Any], None]) -> Iterator[None]:
        modules = dict(self.net.named_modules())
        for name in layers:
            if name not in modules or not name:
                raise LayerNotFoundError(
                    f"{type(self.net).__name__} has no layer {name!r}. {suggest(name, [n for n in modules if n])}"
                )

        def hook_of(name: str) -> Callable[..., None]:
            return lambda _module, _args, output: told(name, output)

        handles = [modules[name].register_forward_hook(hook_of(name)) for name in layers]
        try:
            # Networks that draw random numbers in their forward pass must not move the caller's generator.
            with GENERATORS, torch.random.fork_rng(devices=[]):
                yield
        finally:
            for handle in handles:
                handle.remove()


def gram(features: Tensor) -> Tensor:
    """Return G = F Fᵀ / positions, (B, C, C), for features (B, C, H, W) (Gatys et al. 2016, eq. 3, per position).

    >>> gram(torch.ones(1, 2, 3, 3))[0].tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    flat = features.flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[-1]


class _ReachedError(Exception):
    """Ends a pass once every layer asked for has answered."""
