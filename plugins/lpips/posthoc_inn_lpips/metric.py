"""LPIPS v0.1: features of an ImageNet network, and the learned weights of its channels (Zhang et al., CVPR 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from posthoc_inn_torchvision.backbones import build_classifier
from torch import Tensor, nn
from torchvision.models import get_model_weights

from posthoc_inn.errors import DataError, PluginError, ShapeError
from posthoc_inn.training.perceptual import unit_channels
from posthoc_inn.weights import load_state

PUBLISHED = "IMAGENET1K_V1"
"""torchvision's name of the weights that the channels' weights were learned for."""
CLASSIFIERS = {"alex": "alexnet", "squeeze": "squeezenet1_1", "vgg": "vgg16"}
TAPS = {"alex": (1, 4, 7, 9, 11), "squeeze": (1, 4, 7, 9, 10, 11, 12), "vgg": (3, 8, 15, 22, 29)}
"""Modules of `features` after which features are compared."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of pictures in [-1, 1]: LPIPS' own rounding of ImageNet's normalisation."""


class Lpips(nn.Module):
    """d(a, b) = Σ_l 1/(H_l W_l) Σ_hw w_l · (â_lhw - b̂_lhw)², â and b̂ of length 1 over channels (Zhang et al., eq. 1).

    The paper writes w_l inside the norm; its code, whose learned weights these are, weights the squares.

    Args:
        features: Convolutions of the network.
        taps: Numbers of the modules after which features are compared.
        channels: For each of them w_l, (C_l,).

    >>> lpips = Lpips(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), [1], [torch.ones(4)])
    >>> a, b = torch.rand(2, 5, 3, 8, 8)
    >>> lpips(a, b).shape, lpips(a, a).tolist()
    (torch.Size([5]), [0.0, 0.0, 0.0, 0.0, 0.0])
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, features: nn.Sequential, taps: Sequence[int], channels: Sequence[Tensor]) -> None:
        super().__init__()
        self.features, self.taps = features[: max(taps) + 1], tuple(taps)
        for number, weight in enumerate(channels):
            self.register_buffer(f"channels{number}", weight.detach().clone()[:, None])
        self.register_buffer("shift", torch.tensor(SHIFT).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(3, 1, 1))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distance (B,) of each two pictures a, b (B, C, H, W) in [0, 1], grey ones as three equal channels.

        Raises:
            ShapeError: They have another number of channels than 1 or 3, or not one shape.
        """
        if a.shape != b.shape or a.ndim != 4 or a.shape[1] not in (1, 3):
            raise ShapeError(
                f"LPIPS compares pictures (B, 1, H, W) or (B, 3, H, W) of one shape, got {tuple(a.shape)} and "
                f"{tuple(b.shape)}."
            )
        found = torch.zeros(len(a), dtype=self.shift.dtype, device=self.shift.device)
        for number, (left, right) in enumerate(zip(self._features(a), self._features(b), strict=True)):
            squares = (unit_channels(left) - unit_channels(right)).square()
            found = found + (squares * self.get_buffer(f"channels{number}")).sum(1).mean(1)
        return found

    def _features(self, images: Tensor) -> list[Tensor]:
        """Return the features at each tap, (B, C_l, places), in the precision of the weights."""
        images = images.to(self.shift).expand(-1, 3, -1, -1)
        x, found = (2 * images - 1 - self.shift) / self.scale, []
        for number, module in enumerate(self.features):
            x = module(x)
            if number in self.taps:
                found.append(x.flatten(2).to(self.shift))  # the next module may write into it
        return found


def build_lpips(net: str, weights: str | None = None) -> Lpips:
    """Return LPIPS over one of the three networks.

    Args:
        net: "alex", "squeeze" or "vgg".
        weights: Of the network: None for those in torch's hub directory, which are not downloaded; "IMAGENET1K_V1",
            which are, where they are not there; or a local file.

    Raises:
        DataError: The network's weights are not there, or cannot be read, downloaded or loaded.
        UnknownNameError: torchvision publishes no such weights.
        PluginError: The package lpips, whose weights of channels are read, is not whole.
    """
    name = CLASSIFIERS[net]
    features = build_classifier(name, weights=weights or str(_at_hand(net)), num_classes=None).features
    assert isinstance(features, nn.Sequential)
    lpips = Lpips(features, TAPS[net], channel_weights(net))
    return lpips.eval().requires_grad_(False)


def _at_hand(net: str) -> Path:
    """Return the file of the network's published weights in torch's hub directory."""
    url: str = get_model_weights(CLASSIFIERS[net])[PUBLISHED].url
    file: Path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not file.is_file():
        raise DataError(
            f"lpips-{net} needs the ImageNet weights of {CLASSIFIERS[net]}, and {file} is not there. Nothing was "
            f"downloaded. Put the file there ({url}); or, to train by it, say perceptual_weights={PUBLISHED!r}, which "
            "downloads it, or name a local file of them as perceptual_weights."
        )
    return file


def channel_weights(net: str, state: Mapping[str, Tensor] | None = None) -> list[Tensor]:
    """Return the learned weights of channels w_l, each (C_l,), not negative, that the package lpips brings.

    Args:
        net: "alex", "squeeze" or "vgg".
        state: Read elsewhere, in the package's format: "lin0.model.1.weight" (1, C_0, 1, 1) and so on.

    Raises:
        PluginError: The package is not whole, or brings another format.
    """
    if state is None:
        state = load_state(_packaged(net))
    names = [f"lin{number}.model.1.weight" for number in range(len(TAPS[net]))]
    if sorted(state) != sorted(names) or any(t.ndim != 4 or t.shape[::2] != (1, 1) for t in state.values()):
        raise PluginError(
            f"The weights of channels for {net} should be {', '.join(names)}, each (1, C, 1, 1); got "
            f"{', '.join(f'{name} {tuple(tensor.shape)}' for name, tensor in list(state.items())[:8])}. "
            "Install lpips 0.1.4."
        )
    return [state[name].float().flatten() for name in names]


def _packaged(net: str) -> Path:
    # Not imported: that would bring in all it is trained with.
    try:
        file = Path(str(distribution("lpips").locate_file(f"lpips/weights/v0.1/{net}.pth")))
    except PackageNotFoundError:
        raise PluginError("The package lpips is not installed: pip install lpips.") from None
    if not file.is_file():
        raise PluginError(f"The package lpips lacks {file}: pip install --force-reinstall lpips.")
    return file
