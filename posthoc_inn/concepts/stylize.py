"""Style transfer: paints images in the strokes of a sketch, with the features of any network (IIN 3.2 and fig. 3).

A small image-to-image network is trained for each sketch (Johnson et al., ECCV 2016) on the content and Gram-matrix
losses of Gatys et al., CVPR 2016.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posthoc_inn.concepts.style_features import MIN_SIDE, StyleFeatures, gram
from posthoc_inn.config import ImageSpec
from posthoc_inn.errors import PosthocInnWarning, Problems, ShapeError, TrainingError, is_count
from posthoc_inn.images import fit_canonical, match_channels
from posthoc_inn.images.spec import check_canonical
from posthoc_inn.weights import fingerprint, seeded_init

EDGE = 0.02
"""Distance from black and white at which pixels are held before their logit is taken."""

Progress = Callable[[int, int], None]
"""Told how many steps are done, and of how many."""


@runtime_checkable
class Stylizer(Protocol):
    """Anything that paints images in the style of a sketch: `StyleTransfer`, or a better one of your own.

    An attribute ``fingerprint`` (str), if there is one, tells apart stylizers that paint differently: what
    `posthoc_inn.concepts.sketches.SketchSource` keeps on disk is made anew when it changes.
    """

    def __call__(self, images: Tensor, sketch: Tensor, *, progress: Progress | None = None) -> Tensor:
        """Return stylised images (B, C, H, W) in [0, 1] for images (B, C, H, W) and a sketch (C, h, w) in [0, 1]."""


class StyleTransfer:
    """Trains a small network to paint the given images in a sketch's style, and paints them.

    For each sketch, a network g is trained on the images to be painted and minimises, over their mean::

        content + style_weight · style
        content = ‖F_c(g(x)) − F_c(x)‖² / ‖F_c(x) − its mean over positions‖²
        style   = mean over layers l of ‖G_l(g(x)) − G_l(sketch)‖² / ‖G_l(sketch)‖²,   G = F Fᵀ / positions

    with F_l (channels, positions) the features of a frozen copy of `model`. The two terms of Gatys et al. (CVPR 2016,
    eq. 1, 4, 5) are relative here, so that one weight does for all networks and layers. Why a network is trained rather
    than the pixels of each image: its 200 steps of 4 images do for all images of a sketch, where each image alone would
    take some 100 steps; and it changes like images alike, which is what e is to learn from. Statistics-matching methods
    (AdaIN, WCT) would need a decoder for each `model`, trained on a large collection.

    `model` is copied, never changed; the global generators and switches of torch are left alone.

    Args:
        model: Any convolutional network; trained on photographs, its features paint best.
        spec: Its mean, standard deviation and channels; None for canonical images as they are. The size is `side`.
        layers: Dotted names of the layers for the style; None for up to 4 of `candidates`, evenly spread.
        content_layer: Dotted name of the layer for the content; None for the second of `layers`.
        candidates: Layers worth looking at, from input to output (a registered backbone's metadata); None for all.
        style_weight: Strength of the style against the content.
        steps: Training steps for a sketch.
        batch_size: Images a step.
        width: Channels of the painting network's first layer.
        side: Shorter side, in pixels, at which `model` sees images and sketch; None for three times that of the images,
            within 64 to 128, and for theirs where it is more: features are coarser than pixels.
        seed: Seed of the painting network's weights and of the order of the images.

    Attributes:
        fingerprint: Digest of the model's weights and of all options.

    Raises:
        ConfigError: An option is out of range.

    >>> from posthoc_inn.builtin.small_cnn import small_cnn
    >>> stylize = StyleTransfer(small_cnn(), steps=2, side=32)
    >>> stylize(torch.rand(3, 3, 16, 16), torch.rand(3, 40, 40)).shape
    torch.Size([3, 3, 16, 16])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        spec: ImageSpec | None = None,
        layers: Sequence[str] | None = None,
        content_layer: str | None = None,
        candidates: Sequence[str] | None = None,
        style_weight: float = 10.0,
        steps: int = 200,
        batch_size: int = 4,
        width: int = 24,
        side: int | None = None,
        seed: int = 0,
    ) -> None:
        problems = Problems("StyleTransfer")
        problems.check(isinstance(model, nn.Module), f"model must be a torch.nn.Module, got {type(model).__name__}")
        problems.check(not isinstance(layers, str), f"layers must be a list of names, got {layers!r}")
        problems.check(layers is None or len(layers) > 0, "layers must name at least one layer")
        good = isinstance(style_weight, (int, float)) and math.isfinite(style_weight) and style_weight > 0
        problems.check(good, f"style_weight must be positive, got {style_weight!r}")
        for name, value, low in (("steps", steps, 1), ("batch_size", batch_size, 1), ("width", width, 1)):
            problems.check(is_count(value, low), f"{name} must be a whole number of at least {low}, got {value!r}")
        problems.check(side is None or is_count(side, MIN_SIDE), f"side must be {MIN_SIDE} or more, got {side!r}")
        problems.check(is_count(seed, 0), f"seed must be a whole number of at least 0, got {seed!r}")
        problems.raise_if_any()
        self._features = StyleFeatures(model, ImageSpec() if spec is None else spec, side)
        self._options: dict[str, Any] = {
            "layers": None if layers is None else list(layers),
            "content_layer": content_layer,
            "candidates": None if candidates is None else list(candidates),
            "style_weight": float(style_weight),
            "steps": steps,
            "batch_size": batch_size,
            "width": width,
            "side": side,
            "seed": seed,
        }
        facts = [fingerprint(self._features.net), self._features.spec.to_dict(), self._options]
        described = json.dumps(facts, sort_keys=True)
        self.fingerprint = hashlib.sha256(described.encode()).hexdigest()[:32]

    @classmethod
    def from_backbone(cls, name: str, *, weights: str | None = None, **options: Any) -> StyleTransfer:
        """Use a registered backbone: its image spec and the layers worth looking at come from its metadata.

        Args:
            name: Registered name.
            weights: A name the plugin understands or a local file; None for random weights, with a warning: they paint
                shades, but no shapes.
            options: Those of the class.

        Raises:
            UnknownNameError: There is no such backbone; the message lists the nearest names.
            DataError: The weights cannot be read or do not fit.
            ConfigError: An option is out of range.
        """
        from posthoc_inn.plugins import get_plugin_manager

        manager = get_plugin_manager()
        model = manager.build_backbone(name, weights=weights)
        if weights is None:
            warnings.warn(
                f"The style transfer uses {name} with random weights: its features tell shades, but no shapes of "
                "strokes. Pass weights=, a name or a file.",
                PosthocInnWarning,
                stacklevel=2,
            )
        options.setdefault("candidates", list(manager.backbones.get(name).metadata.get("layers") or []) or None)
        return cls(model, spec=manager.image_spec(name, weights=weights), **options)

    def __call__(self, images: Tensor, sketch: Tensor, *, progress: Progress | None = None) -> Tensor:
        """Train for `sketch` on `images`, and paint them.

        The same images, sketch and seed give the same result on one machine.

        Args:
            images: Canonical images (B, C, H, W), of 8 px and more.
            sketch: Canonical image (C, h, w) of any size; its central square is used, at the images' scale. Strokes
                should be a twentieth of its side thick, so that they are seen in small images.
            progress: Told after each step how many are done, and of how many.

        Returns:
            (B, C, H, W) in [0, 1], on the images' device.

        Raises:
            ShapeError: `images` or `sketch` is not canonical, or too small.
            ConfigError: A layer gives no map of features, or none is fit for it.
            LayerNotFoundError: There is no such layer.
            TrainingError: The loss is no longer finite.
        """
        _check(images, sketch)
        batches = math.ceil(len(images) / self._options["batch_size"])
        total = self._options["steps"] + batches
        # A caller in inference mode or without gradients still gets a trained network.
        with torch.inference_mode(False), torch.enable_grad():
            net = self._train(images, sketch.clone(), lambda done: progress(done, total) if progress else None)
        painted = []
        with torch.no_grad():
            for i, part in enumerate(images.split(self._options["batch_size"])):
                painted.append(net(self._features.float(part)).to(images))
                if progress:
                    progress(self._options["steps"] + i + 1, total)
        return torch.cat(painted)

    def layers(self, images: Tensor) -> tuple[tuple[str, ...], str]:
        """Return the layers for the style and the one for the content that are used for images (B, C, H, W).

        Raises:
            ConfigError: No layer is fit for it.
        """
        names: list[str] = self._options["layers"] or self._features.layers(images[:1], self._options["candidates"])
        content = self._options["content_layer"] or names[min(1, len(names) - 1)]
        return tuple(names), content

    def losses(self, painted: Tensor, images: Tensor, sketch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the content and the style loss of each painted image, each (B,), without weight or unit.

        Args:
            painted: Images (B, C, H, W) whose losses are asked for; gradients flow to them.
            images: What they show, (B, C, H, W).
            sketch: In what style, (C, h, w).
        """
        names, content = self.layers(images)
        return self._losses(painted, self._content(images, content), self._style(sketch, images, names), content)

    # ---- training

    def _train(self, images: Tensor, sketch: Tensor, tell: Callable[[int], None]) -> PaintingNet:
        options = self._options
        names, content = self.layers(images)
        style = self._style(sketch, images, names)
        with seeded_init(options["seed"]):
            net = PaintingNet(images.shape[1], options["width"], levels=1 if min(images.shape[-2:]) < 48 else 2)
        net = net.to(self._features.device)
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=options["steps"] + 1)
        generator = torch.Generator().manual_seed(options["seed"])
        queue: list[int] = []
        for step in range(options["steps"]):
            while len(queue) < min(options["batch_size"], len(images)):
                queue += torch.randperm(len(images), generator=generator).tolist()
            chosen, queue = queue[: options["batch_size"]], queue[options["batch_size"] :]
            # Indexing copies, which turns what was made in inference mode into something to compute gradients with.
            x = self._features.float(images[chosen])
            content_loss, style_loss = self._losses(net(x), self._content(x, content), style, content)
            loss = (content_loss + options["style_weight"] * style_loss).mean()
            if not bool(loss.isfinite()):
                raise TrainingError(f"The style transfer's loss is {loss.item()} at step {step}; lower style_weight.")
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            tell(step + 1)
        return net

    def _losses(
        self, painted: Tensor, content: Tensor, style: Mapping[str, Tensor], content_layer: str
    ) -> tuple[Tensor, Tensor]:
        found = self._features(painted, {*style, content_layer})
        spread = (content - content.mean((2, 3), keepdim=True)).square().flatten(1).sum(1)
        # An image of one colour has features without spread: there the error counts by their size.
        scale = torch.where(spread > 0, spread, content.square().flatten(1).sum(1)).clamp(min=1e-12)
        content_loss = (found[content_layer] - content).square().flatten(1).sum(1) / scale
        errors = [
            (gram(found[n]) - g).square().sum((1, 2)) / g.square().sum().clamp(min=1e-12) for n, g in style.items()
        ]
        return content_loss, torch.stack(errors).mean(0)

    @torch.no_grad()
    def _content(self, images: Tensor, layer: str) -> Tensor:
        return self._features(images, {layer})[layer]

    @torch.no_grad()
    def _style(self, sketch: Tensor, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        sketch = match_channels(self._features.float(sketch[None]), images.shape[1])
        # Through the images' own resolution: strokes finer than their pixels could never be painted.
        height, width = images.shape[-2:]
        square = fit_canonical(sketch, min(height, width), images.shape[1])
        found = self._features(square, layers)
        return {name: gram(found[name]) for name in layers}


class PaintingNet(nn.Module):
    """A small convolutional network from images to images, which begins as the identity (Johnson et al. 2016).

    Instance normalisation (Ulyanov et al. 2016), reflected borders and a skip connection at each resolution; it adds
    to the logit of each pixel, so that what comes out is in (0, 1) and gradients do not end at black and white.

    Args:
        channels: C of the images.
        width: Channels of the first convolution; each halving of the resolution doubles them.
        levels: How often the resolution is halved.

    >>> net = PaintingNet(3, 4)
    >>> x = torch.full((1, 3, 9, 9), 0.5)
    >>> bool(torch.allclose(net(x), x))
    True
    """

    def __init__(self, channels: int, width: int, *, levels: int = 1) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(levels + 1)]
        self.stem = _convolution(channels, width, 5)
        self.down = nn.ModuleList(_convolution(a, b, 3, stride=2) for a, b in pairwise(widths))
        self.body = nn.ModuleList(
            nn.Sequential(_convolution(widths[-1], widths[-1], 3), nn.ReLU(), _convolution(widths[-1], widths[-1], 3))
            for _ in range(3)
        )
        self.up = nn.ModuleList(_convolution(b + a, a, 3) for a, b in pairwise(widths))
        self.head = nn.Conv2d(width, channels, 5, padding=2, padding_mode="reflect")
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Return images (B, C, H, W) in (0, 1) for images (B, C, H, W) in [0, 1]."""
        maps: list[Tensor] = [self.stem(images).relu()]
        for down in self.down:
            maps.append(down(maps[-1]).relu())
        h = maps.pop()
        for block in self.body:
            h = h + block(h)
        for up, skip in zip(reversed(self.up), reversed(maps), strict=True):
            larger = F.interpolate(h, skip.shape[-2:], mode="bilinear", align_corners=False)
            h = up(torch.cat([larger, skip], 1)).relu()
        change: Tensor = self.head(h)
        return (images.clamp(EDGE, 1 - EDGE).logit() + change).sigmoid()


def _convolution(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, padding_mode="reflect"),
        nn.InstanceNorm2d(channels_out, affine=True),
    )


def _check(images: Tensor, sketch: Tensor) -> None:
    check_canonical(images)
    if not isinstance(sketch, Tensor) or sketch.ndim != 3:
        found = tuple(sketch.shape) if isinstance(sketch, Tensor) else type(sketch).__name__
        raise ShapeError(f"sketch must be one image (C, h, w) in [0, 1], got {found}.")
    check_canonical(sketch[None], subject="sketch[None]")
    if len(images) == 0 or min(images.shape[-2:]) < MIN_SIDE or min(sketch.shape[-2:]) < MIN_SIDE:
        raise ShapeError(
            f"Style transfer takes at least one image, and images and sketches of {MIN_SIDE} px and more; got images "
            f"{tuple(images.shape)} and a sketch {tuple(sketch.shape)}."
        )
